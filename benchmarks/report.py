"""Formats the results of `benchmarks.measurement` as a Markdown table and text."""

import datetime
import os
import pathlib
import platform
import statistics

NAMES = {"hf": "HF transformers", "keras_hub": "KerasHub", "openvino": "OpenVINO"}
NAMES |= {"gemm": "matrix products alone", "kbert_openvino": "kbert, backend=openvino"}
NAMES |= {"before": "kbert, --before"}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
COLUMNS = (
    *("", "", "median (lowest to highest)", "kbert is faster by", "GFLOP/s", "of the peak"),
    *("peak memory", "import + build + first step"),
)


def summaries(row, measured):
    """Computes the results of a row from the output of `measure`.

    Returns:
        list of dicts, one per library, with `row`, `library`, `unit` and the values of `measured`.
        Unless the library failed, also `rate` (median), `lowest` and `highest`; `speedup`, the
        factor by which kbert is faster (median, lowest, highest), if kbert was measured; and, if
        the row counts operations, `flops` (per second) and `share_of_peak`.
    """
    base = measured.get("kbert", {}).get("rates")
    peak = measured.get("gemm", {}).get("rates")
    rows = []
    for library, values in measured.items():
        line = {"row": row.name, "library": library, "unit": row.unit, **values}
        rows.append(line)
        if "failed" in values:
            continue
        rates = values["rates"]
        line |= {"rate": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
        if library == "gemm":
            line |= {"unit": "operations", "flops": line["rate"]}
            continue
        if base and library != "kbert":
            ratios = [kbert_rate / rate for kbert_rate, rate in zip(base, rates, strict=True)]
            line["speedup"] = [statistics.median(ratios), min(ratios), max(ratios)]
        if row.flops:
            line["flops"] = line["rate"] * row.flops
            if peak:
                shares = [rate * row.flops / p for rate, p in zip(rates, peak, strict=True)]
                line["share_of_peak"] = statistics.median(shares)
    return rows


def table(compared):
    """Returns a Markdown table without empty columns.

    Args:
        compared: list of (row, summaries of the row).
    """
    rows = [COLUMNS]
    for row, lines in compared:
        for number, line in enumerate(lines):
            rows.append(["" if number else f"{row.name}: {row.detail}", *_cells(row, line)])
    kept = [i for i in range(len(COLUMNS)) if i < 3 or any(cells[i] for cells in rows[1:])]
    rows.insert(1, ["---"] * len(COLUMNS))
    return "\n".join(f"| {' | '.join(cells[i] for i in kept)} |" for cells in rows)


def _cells(row, line):
    """Returns the cells of a line, without the name of the row."""
    name = NAMES.get(line["library"], line["library"])
    if "failed" in line:
        return [name, f"failed: {line['failed'][:200]}".replace("|", "/"), *[""] * 5]
    flops = f"{line['flops'] / 1e9:,.0f}" if "flops" in line else ""
    if line["library"] == "gemm":
        return [name, "", "", flops, "", "", ""]
    speedup = ""
    if "speedup" in line:
        middle, low, high = line["speedup"]
        speedup = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    times = [line["ready"][key] for key in ("import_s", "build_s", "first_step_s")]
    return [
        name,
        _speed(row, line),
        speedup,
        flops,
        f"{line['share_of_peak']:.2f}" if "share_of_peak" in line else "",
        f"{line['peak_bytes'] / 1e9:.2f} GB" if "peak_bytes" in line else "",
        " + ".join(f"{seconds:.1f}" for seconds in times) + " s",
    ]


def _speed(row, line):
    if row.latency:
        middle, low, high = (
            format_number(1e3 / line[key]) for key in ("rate", "highest", "lowest")
        )
        return f"{middle} ms ({low} to {high})"
    middle, low, high = (
        format_number(line[key] / row.scale) for key in ("rate", "lowest", "highest")
    )
    return f"{middle} {row.unit}/s ({low} to {high})"


def format_number(value):
    """Formats a number with at least three digits: 12,345, 123, 12.3, 1.23 or 0.123."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def machine():
    """Returns a dict that describes the machine: CPU, relevant CPU flags, cores, memory."""
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    cpu_flags = fields.get("flags", "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": f"{fields.get('model name', platform.processor())} (family "
        f"{fields.get('cpu family', '?')}, model {fields.get('model', '?')})",
        "flags": [flag for flag in CPU_FLAGS if flag in cpu_flags],
        "flags_missing": [flag for flag in CPU_FLAGS if flag not in cpu_flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def headline(area, machine, report, threads, rounds, seconds, variables):
    """Returns text about the measurement: machine, settings, load by other processes, versions."""
    versions = {}
    for line in report:
        versions |= line.get("ready", {}).get("versions", {})
    versions = {"Python": machine["python"], **versions}
    foreign = [share for line in report for share in line.get("foreign_share", [])]
    cpu_flags = ", ".join([*machine["flags"], *(f"no {name}" for name in machine["flags_missing"])])
    waiting = variables["OMP_WAIT_POLICY"].lower()
    return "\n".join(
        [
            f"{area}, {datetime.date.today()}: {machine['cores']} cores of {machine['cpu']}, "
            f"{cpu_flags}, {machine['memory_gib']} GiB.",
            f"{threads} threads per library (OMP_WAIT_POLICY: {waiting}); {rounds} rounds of about "
            f"{seconds:g} s, libraries in turns. Other processes used "
            f"{statistics.median(foreign or [0]):.0%} of the machine (median of the rounds; "
            f"maximum {max(foreign, default=0):.0%}).",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n",
        ]
    )


def notes(report):
    """Yields the notes of each library, and notes on libraries that used CPU time while waiting."""
    rows_with_note = {}
    for line in report:
        text = line.get("ready", {}).get("notes")
        if text:
            name = NAMES.get(line["library"], line["library"])
            rows_with_note.setdefault((name, text), []).append(line["row"])
        if line.get("idle_share", 0) > 0.05:
            yield (
                f"note: {line['library']} used {line['idle_share']:.0%} of a core while it waited "
                f"({line['row']})"
            )
    for (library, text), rows in rows_with_note.items():
        yield f"- {library}, {', '.join(rows)}: {text}"
