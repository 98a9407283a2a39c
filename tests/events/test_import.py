import subprocess
import sys

MODULES = ("event", "fan_out", "jsonl", "chrome", "window", "progress", "busy", "plain")


def test_events_import_neither_torch_nor_rich():
    code = "; ".join(f"import convoy.events.{m}" for m in MODULES)
    code += "; import sys; bad = {'torch', 'numpy', 'rich'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)
