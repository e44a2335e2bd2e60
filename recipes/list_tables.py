"""Tables of the pages, as list-tables of reStructuredText: recipes, benchmarks and docs/figures.py write them here."""

import platform
from pathlib import Path


def list_table(title, rows, *, header=True, widths=None):
    """Text of a table; the first of the rows is its header, unless there is none. Cells may be of any type."""
    options = {"header-rows": 1 if header else None, "widths": widths}
    lines = [f".. list-table:: {title}", *(f"   :{key}: {value}" for key, value in options.items() if value), ""]
    for row in rows:
        lines += [f"   {' ' if k else '*'} - {cell}" for k, cell in enumerate(row)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def write_rst(path, *parts):
    """Write tables, and what stands between them, to one file; parts are paragraphs that end with a newline."""
    Path(path).write_text("\n".join(parts), encoding="utf-8")


def processor():
    """Name of the processor, for the titles of tables."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
