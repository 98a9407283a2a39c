"""The page in a real browser: it renders, the plots are there, nothing complains, and the keyboard is enough."""

import pytest

from convoy.report.write import write_report

pytestmark = pytest.mark.browser

PLOTS = "document.querySelectorAll('figure[data-live]').length"
LIVE = "document.querySelectorAll('figure.live canvas').length"
SAID = "document.getElementById('said').textContent"


@pytest.fixture
def page(folder):
    return write_report(folder.trained().end().write())[0]


def all_plots(browser):
    """Come by every figure, so that its curves are drawn."""
    browser.run("document.querySelectorAll('figure').forEach(figure => figure.scrollIntoView())")
    for number in range(browser.run(PLOTS)):
        browser.run(f"document.querySelectorAll('figure[data-live]')[{number}].scrollIntoView()")
        browser.wait(f"document.querySelectorAll('figure[data-live]')[{number}].classList.contains('live')")


def ink(browser, number):
    """How many pixels of a plot's canvas are drawn on."""
    return browser.run(
        f"""(() => {{
            const canvas = document.querySelectorAll('figure.live canvas')[{number}];
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let drawn = 0;
            for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0;
            return drawn;
        }})()"""
    )


def test_everything_is_drawn_and_nothing_complains(browser, page):
    browser.open(page)
    all_plots(browser)
    assert browser.run(PLOTS) == browser.run(LIVE) >= 7
    browser.run("new Promise(requestAnimationFrame)")
    assert all(ink(browser, number) > 500 for number in range(browser.run(LIVE)))
    assert browser.run("document.querySelectorAll('figure.wide svg rect').length") > 20
    assert browser.run("document.title") == "lenet5 · digits · pipelined – convoy report"
    assert browser.messages == []


@pytest.mark.parametrize("width", [320, 390, 820, 1600])
def test_nothing_sticks_out_at_any_width(browser, page, width):
    browser.open(page, width=width, height=800)
    all_plots(browser)
    assert browser.run("document.documentElement.scrollWidth") <= width
    edges = "[...document.querySelectorAll('.plot canvas')].map(canvas => canvas.getBoundingClientRect().right)"
    assert max(browser.run(edges)) <= width
    assert browser.messages == []


def test_curves_follow_the_window(browser, page):
    browser.open(page, width=1200)
    browser.wait(f"{LIVE} > 0")
    before = browser.run("document.querySelector('figure.live canvas').clientWidth")
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    browser.wait(f"document.querySelector('figure.live canvas').clientWidth < {before} - 100")


def test_dark_and_light_differ_and_both_can_be_read(browser, page):
    contrast = """(() => {
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => { v /= 255;
            return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = light(getComputedStyle(document.body).backgroundColor);
        const of = (selector) => { const own = light(getComputedStyle(document.querySelector(selector)).color);
            return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05); };
        return [ground, of('h1'), of('.note'), of('nav a'), of('.status')];
    })()"""
    grounds = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        ground, *contrasts = browser.run(contrast)
        grounds.append(ground)
        assert min(contrasts) >= 4.5, "the bound of WCAG 2 for text"
    assert grounds[0] > 0.9 and grounds[1] < 0.05


def test_the_scheme_changes_under_a_drawn_page(browser, page):
    browser.open(page)
    browser.wait(f"{LIVE} > 0")
    browser.call("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait("getComputedStyle(document.body).backgroundColor === 'rgb(21, 24, 27)'")
    browser.wait(f"{LIVE} > 0 && document.querySelectorAll('.uplot').length === {LIVE}")
    assert browser.messages == []


def test_the_keyboard_moves_the_cursor_and_zooms(browser, page):
    browser.open(page)
    browser.wait(f"{LIVE} > 0")
    for _ in range(40):
        browser.press("Tab")
        if browser.run("document.activeElement.classList.contains('uplot')"):
            break
    assert "Accuracy against wall time" in browser.run("document.activeElement.getAttribute('aria-label')")
    browser.press("ArrowRight")
    assert browser.run(SAID) == "seconds of training 0.6: validation 91%, training 50%"
    browser.press("Home")
    assert browser.run(SAID).startswith("seconds of training 0.4: validation 90%")
    picture = "document.querySelector('figure.live canvas').toDataURL()"
    whole = browser.run(picture)
    browser.press("+")
    browser.wait(f"{picture} !== {whole!r}")
    browser.press("Escape")
    browser.wait("new Promise(requestAnimationFrame).then(() => true)")
    assert browser.messages == []


def test_arrows_go_from_value_to_value(browser, page):
    browser.open(page)
    all_plots(browser)
    plot = "[...document.querySelectorAll('.uplot')].find(e => e.ariaLabel.startsWith('Loss of the mini-batches'))"
    browser.run(f"{plot}.focus()")
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight"):
        browser.press(key)
        said.append(browser.run(SAID))
    assert said == [
        f"mini-batch {b}: training loss {v}" for b, v in ((1, 1), (2, 0.6667), (1, 1), (39, 0.05), (39, 0.05))
    ]


def test_sections_and_numbers_are_reached_without_a_pointer(browser, page):
    browser.open(page)
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the numbers"
    browser.press("Enter")
    browser.wait("location.hash === '#main'")
    browser.run("document.querySelector('#throughput summary').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('#throughput details').open")


def test_numbers_can_be_copied(browser, page):
    browser.open(page)
    browser.run("document.querySelector('details.numbers').open = true")
    browser.run(
        """(() => { window.copied = null;
            const keep = async (text) => { window.copied = text; };
            Object.defineProperty(navigator, 'clipboard', { value: { writeText: keep }, configurable: true }); })()"""
    )
    browser.run("document.querySelector('details.numbers .copy').click()")
    browser.wait(f"{SAID} === 'Copied'")
    assert browser.run("window.copied").startswith("seconds of training,validation,training\n0.4,0.9,0.5\n")


def test_where_nothing_can_be_copied_the_numbers_are_selected(browser, page):
    browser.open(page)
    browser.run("document.querySelector('details.numbers').open = true")
    browser.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    browser.run("document.execCommand = () => false")
    browser.run("document.querySelector('details.numbers .copy').click()")
    browser.wait(f"{SAID} === 'Selected: press Ctrl-C'")
    assert browser.run("getSelection().toString()").startswith("seconds of training,validation")


def test_on_paper_the_drawings_stand_for_the_curves(browser, page):
    browser.open(page)
    all_plots(browser)
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = "[...document.querySelectorAll('{}')].filter(e => e.getClientRects().length).length"
    assert browser.run(shown.format("figure.live .drawn svg")) == browser.run(PLOTS)
    assert browser.run(shown.format("canvas")) == browser.run(shown.format("nav")) == 0


def test_without_scripts_the_drawings_are_there(browser, page):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.run("document.querySelectorAll('.live').length") == 0
        assert browser.run("[...document.querySelectorAll('.drawn svg')].every(e => e.clientWidth > 200)")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_names_that_look_like_markup_run_no_script(browser, folder):
    nasty = "</script><script>console.error('broken out')</script><img src=x onerror=console.error(1)>"
    folder.config = f'model = "{nasty}"'
    folder.trained()
    folder.tell("warning", "w", data={"message": nasty})
    browser.open(write_report(folder.end().write())[0])
    all_plots(browser)
    assert browser.run("document.querySelector('h1').textContent").startswith(nasty)
    assert browser.messages == []
