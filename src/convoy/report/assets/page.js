"use strict";
(() => {
  const said = document.getElementById("said");
  const say = (words) => { said.textContent = words; };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // --- copying ---------------------------------------------------------------------------------------------------
  const copyOld = (pre) => {
    const chosen = getSelection(), range = document.createRange();
    range.selectNodeContents(pre);
    chosen.removeAllRanges();
    chosen.addRange(range);
    return document.execCommand("copy");
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const pre = button.parentElement.querySelector("pre");
    let done = false;
    try { await navigator.clipboard.writeText(pre.textContent); done = true; } catch { done = copyOld(pre); }
    const words = done ? "Copied" : "Selected: press Ctrl-C";
    button.textContent = words;
    say(words);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  // --- curves ----------------------------------------------------------------------------------------------------
  const cells = (line) => {
    const out = [];
    for (const found of line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)) {
      out.push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    }
    return out;
  };
  const parse = (csv) => {
    const [head, ...rows] = csv.trim().split("\n").map(cells);
    const columns = head.map((_, i) => rows.map((row) => (row[i] === "" || row[i] === undefined ? null : Number(row[i]))));
    return { head, columns };
  };
  const short = (value, percent) => {
    if (value === null || value === undefined) return "–";
    if (percent) return `${+(value * 100).toFixed(2)}%`;
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(4)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    return `${+value.toPrecision(size >= 1e4 ? 6 : 4)}`;
  };

  const draw = (figure) => {
    const about = JSON.parse(figure.dataset.live);
    const { head, columns } = parse(figure.querySelector(".numbers pre").textContent);
    const place = figure.querySelector(".plot");
    const width = () => Math.max(260, Math.floor(place.clientWidth));
    const colour = (i) => css(`--c${i % 10}`);
    const axis = { stroke: css("--faint"), grid: { stroke: css("--rule"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const options = {
      width: width(), height: Math.round(Math.min(300, Math.max(220, width() * 0.55))),
      scales: { x: { time: false, range: (u, low, high) => [
        about.fromZero && low === columns[0][0] ? Math.min(0, low) : low, high > low ? high : low + 1] }, y: { range: (u, low, high) => {
        if (low === null) return [0, 1];
        if (about.zero) { low = Math.min(0, low); high = Math.max(0, high); }
        const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
        return [about.zero && low === 0 ? 0 : low - pad, high + pad];
      } } },
      legend: { markers: { width: 2, dash: (u, i) => (i > 0 && about.lines[i - 1].dash ? "dashed" : "solid") } },
      cursor: { drag: { x: true, y: false }, focus: { prox: 24 } },
      axes: [{ ...axis, size: 30, label: head[0], labelSize: 20, labelFont: "12px system-ui",
               incrs: about.whole ? [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((p) => n * 10 ** p)).sort((a, b) => a - b) : undefined },
             { ...axis, size: 58, values: (u, ticks) => ticks.map((tick) => short(tick, about.percent)) }],
      series: [{ label: head[0], value: (u, v) => short(v, false) }, ...about.lines.map((line, i) => ({
        label: head[i + 1], stroke: colour(line.colour), width: line.faint ? 1 : 2, alpha: line.faint ? 0.5 : 1,
        dash: line.dash ? line.dash.split(" ").map(Number) : undefined, spanGaps: true,
        points: { show: line.points || columns[0].length < 2, size: 6 }, value: (u, v) => short(v, about.percent),
      }))],
      hooks: { draw: [(u) => {
        for (const [at] of about.marks) {
          const x = u.valToPos(at, "x", true);
          u.ctx.save();
          u.ctx.strokeStyle = css("--faint");
          u.ctx.setLineDash([4, 4]);
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
          u.ctx.restore();
        }
      }] },
    };
    const plot = new uPlot(options, columns, place);
    figure.classList.add("live");
    about.lines.forEach((line, i) => {
      if (line.faint) plot.root.querySelectorAll(".u-legend .u-series")[i + 1].hidden = true;
    });
    plot.root.tabIndex = 0;
    plot.root.setAttribute("role", "application");
    plot.root.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}. Arrows move the cursor, plus and minus zoom, Escape shows all.`);
    keys(plot, head, about);
    return { plot, width };
  };

  const keys = (plot, head, about) => {
    let at = 0;
    const data = plot.data;
    const last = data[0].length - 1;
    const show = () => {
      plot.setCursor({ left: plot.valToPos(data[0][at], "x"), top: 10 });
      plot.setLegend({ idx: at });
      const values = head.slice(1).map((name, i) => `${name} ${short(data[i + 1][at], about.percent)}`);
      say(`${head[0]} ${short(data[0][at], false)}: ${values.join(", ")}`);
    };
    const zoom = (factor) => {
      const { min, max } = plot.scales.x;
      const middle = Math.min(max, Math.max(min, data[0][at]));
      const low = Math.max(data[0][0], middle - (middle - min) * factor);
      const high = Math.min(data[0][last], middle + (max - middle) * factor);
      if (high > low) plot.setScale("x", { min: low, max: high });
    };
    plot.root.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(last / 10));
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageDown: -page, PageUp: page, Home: -last, End: last };
      if (event.key in moves) { at = Math.min(last, Math.max(0, at + moves[event.key])); show(); }
      else if (event.key === "+" || event.key === "=") zoom(0.5);
      else if (event.key === "-") zoom(2);
      else if (event.key === "Escape") plot.setScale("x", { min: data[0][0], max: data[0][last] });
      else return;
      event.preventDefault();
    });
  };

  const figures = [...document.querySelectorAll("figure[data-live]")];
  const plots = new Map();
  const make = (figure) => { if (!plots.has(figure)) plots.set(figure, draw(figure)); };
  const watcher = new IntersectionObserver((seen) => {
    for (const entry of seen) if (entry.isIntersecting) { watcher.unobserve(entry.target); make(entry.target); }
  }, { rootMargin: "600px" });
  figures.forEach((figure) => watcher.observe(figure));
  new ResizeObserver(() => {
    for (const { plot, width } of plots.values()) {
      if (plot.width !== width()) plot.setSize({ width: width(), height: plot.height });
    }
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [figure, { plot }] of plots) { plot.destroy(); plots.set(figure, draw(figure)); }
  });
})();
