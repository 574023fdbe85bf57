"""Results of comparisons, from `benchmarks.harness` measurements, as Markdown table and text."""

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


def summaries(row, found):
    """Computes the results of a row from the output of `measure`.

    Returns:
        list of dicts, one for each side; all but `failed` sides have `rate` (median), `lowest`,
        `highest`, `speedup` of kbert over this side with its range (omitted without kbert), and, if
        the row has operation counts, `flops` (per second) and `share_of_peak`.
    """
    base = found.get("kbert", {}).get("rates")
    peak = found.get("gemm", {}).get("rates")
    rows = []
    for side, values in found.items():
        line = {"row": row.name, "side": side, "unit": row.unit, **values}
        rows.append(line)
        if "failed" in values:
            continue
        rates = values["rates"]
        line |= {"rate": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
        if side == "gemm":
            line |= {"unit": "operations", "flops": line["rate"]}
            continue
        if base and side != "kbert":
            ratios = [ours / theirs for ours, theirs in zip(base, rates, strict=True)]
            line["speedup"] = [statistics.median(ratios), min(ratios), max(ratios)]
        if row.flops:
            line["flops"] = line["rate"] * row.flops
            if peak:
                shares = [rate * row.flops / p for rate, p in zip(rates, peak, strict=True)]
                line["share_of_peak"] = statistics.median(shares)
    return rows


def table(compared):
    """Formats a Markdown table without empty columns.

    Args:
        compared: list of (row, `summaries` of it).
    """
    rows = [COLUMNS]
    for row, lines in compared:
        for number, line in enumerate(lines):
            rows.append(["" if number else f"{row.name}: {row.detail}", *_cells(row, line)])
    kept = [i for i in range(len(COLUMNS)) if i < 3 or any(cells[i] for cells in rows[1:])]
    rows.insert(1, ["---"] * len(COLUMNS))
    return "\n".join(f"| {' | '.join(cells[i] for i in kept)} |" for cells in rows)


def _cells(row, line):
    """Returns the cells of a line, except the row's name."""
    name = NAMES.get(line["side"], line["side"])
    if "failed" in line:
        return [name, f"failed: {line['failed'][:200]}".replace("|", "/"), *[""] * 5]
    flops = f"{line['flops'] / 1e9:,.0f}" if "flops" in line else ""
    if line["side"] == "gemm":
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
        middle, low, high = (figure(1e3 / line[key]) for key in ("rate", "highest", "lowest"))
        return f"{middle} ms ({low} to {high})"
    middle, low, high = (figure(line[key] / row.scale) for key in ("rate", "lowest", "highest"))
    return f"{middle} {row.unit}/s ({low} to {high})"


def figure(value):
    """Formats a number with three significant digits: 12,345, 123, 12.3, 1.23 or 0.123."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def machine():
    """dict that describes the machine: CPU, relevant CPU flags, cores, memory."""
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags_there = fields.get("flags", "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": f"{fields.get('model name', platform.processor())} (family "
        f"{fields.get('cpu family', '?')}, model {fields.get('model', '?')})",
        "flags": [flag for flag in CPU_FLAGS if flag in flags_there],
        "flags_missing": [flag for flag in CPU_FLAGS if flag not in flags_there],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def headline(area, machine, report, threads, rounds, seconds, variables):
    """Describes the measurement: settings, machine and its other load."""
    versions = {}
    for line in report:
        versions |= line.get("ready", {}).get("versions", {})
    versions = {"Python": machine["python"], **versions}
    foreign = [share for line in report for share in line.get("foreign_share", [])]
    there = ", ".join([*machine["flags"], *(f"no {flag}" for flag in machine["flags_missing"])])
    waiting = variables["OMP_WAIT_POLICY"].lower()
    return "\n".join(
        [
            f"{area}, {datetime.date.today()}: {machine['cores']} cores of {machine['cpu']}, "
            f"{there}, {machine['memory_gib']} GiB.",
            f"{threads} threads a side (OpenMP waits: {waiting}); {rounds} rounds of about "
            f"{seconds:g} s, sides in turns. Other processes took "
            f"{statistics.median(foreign or [0]):.0%} of the machine (median of the rounds; most "
            f"{max(foreign, default=0):.0%}).",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n",
        ]
    )


def notes(report):
    """Lines on how each side computes, and on sides that were not idle while they waited."""
    told = {}
    for line in report:
        text = line.get("ready", {}).get("notes")
        if text:
            told.setdefault((NAMES.get(line["side"], line["side"]), text), []).append(line["row"])
        if line.get("idle_share", 0) > 0.05:
            yield (
                f"note: {line['side']} took {line['idle_share']:.0%} of a core while it waited "
                f"({line['row']})"
            )
    for (side, text), rows in told.items():
        yield f"- {side}, {', '.join(rows)}: {text}"
