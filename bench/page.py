"""docs/benchmarks.md and its plots, from the results alone: whatever was not measured yet is said to be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import charts, results
from bench.charts import Bar
from dev.docs.markdown import NOTICE, table

Result = Mapping[str, Any]
PLOTS_FOLDER: Final = "benchmarks"
NAMES: Final = ("upstream directly", "bare pass-through", "Tollgate", "LiteLLM")
COLOUR_OF: Final = {name: number for number, name in enumerate(NAMES)}

INTRODUCTION: Final = """
What Tollgate costs and what it can stand, measured on one machine by commands that are in this repository. Compare
within a table, not between machines: counts and ratios hold anywhere, times and processor seconds are of the machine
that is named with them.

```sh
make bench    # about a quarter of an hour; writes this page
make soak     # an hour's worth of traffic in ten minutes
```

`python -m bench peers quota` measures some of it, `--small` tries everything in a minute without meaning anything.
LiteLLM is installed from [requirements/litellm.txt](../requirements/litellm.txt) into an environment of its own; where
that fails, its rows are left out and the run says why.
"""

LIMITS: Final = """
## What these figures do not say

- **Nothing ran on AWS.** Functions ran as Lambda runs them (their runtime, one process for each request at a time), but
  the function URL, its network, DynamoDB's milliseconds, and Lambda's own start of an environment are missing. The one
  write before the first byte and the two after the last take a few milliseconds each there, not a fraction of one.
- **The upstream is a double** that answers at once. Against a model's half second to the first token, what any of these
  add is small; what the table compares is the work.
- **LiteLLM ran without Postgres and Redis**, which a deployment with its own keys needs: its rows are kinder than that.
  Its own part that books real cost, which it registers only beside a database, was registered, or every request would
  have used up its worst case. It does much that Tollgate does not (other providers, routing, retries), and one process
  of it serves all streams, where a function needs one for each: in memory, it wins as soon as there are many.
- **Load, targets and upstream shared the same cores.** From 64 streams on, times to the first token are mostly those of
  a full machine; processor time and memory are not touched by that.
- **The quota's burst is one shape**: equal messages, all at the same moment, a known price. A prompt whose size only
  the upstream can know (files, searches) is not in it.
- **Cost** is that of the streams, at list prices, without free tiers, storage, alarms and Anthropic's own bill.
"""


def page(root: Path) -> str:
    """The whole page."""
    found = _Results(root)
    sections = [_peers, _quota, _requests, _costs, _starts, _soak, _growth, _chaos]
    text = "\n".join(filter(None, (section(found) for section in sections)))
    head = NOTICE.format(name="benchmarks").replace("the code", "the benchmarks")
    return f"{head}\n\n# Benchmarks\n{INTRODUCTION}\n{text}\n{LIMITS.strip()}\n"


class _Results:
    def __init__(self, root: Path) -> None:
        self._folder = root / "bench" / "results"

    def find(self, name: str) -> Result | None:
        return results.read(name, self._folder)


def _section(title: str, name: str, how: str, body: Callable[[Result], str]) -> Callable[[_Results], str]:
    """A section of one result: where and how it was measured, and its figures."""

    def write(found: _Results) -> str:
        result = found.find(name)
        if result is None or (result.get("skipped") and len(result) <= 3):
            return f"## {title}\n\nNot measured yet: {how}.\n"
        return f"## {title}\n\n{_measured(result)} Again: {how}. Data: `bench/results/{name}.json`.\n\n{body(result)}"

    return write


def _measured(result: Result) -> str:
    parts = result.get("parts", {}).values()  # of the chaos suite: each was run on its own
    day = result.get("measured_at") or max((part["ran_at"][:10] for part in parts), default=None)
    places = [result["measured_on"]] if "measured_on" in result else sorted({part["measured_on"] for part in parts})
    return f"*{', '.join([*filter(None, [day]), *places])}.*"


def _paragraphs(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _plot(name: str, words: str) -> str:
    return f"![{words}]({PLOTS_FOLDER}/{name}.svg)\n"


def _times(value: float, base: float) -> str:
    return f"{value:g} ({value / base:.1f}x)" if base else f"{value:g}"


# --- Peers ----------------------------------------------------------------------------------------------------------


def _peers_body(result: Result) -> str:
    short, skipped = result["short"], result["skipped"]
    base = short["bare pass-through"]["cpu_ms_per_stream"]
    rows = [
        [
            name,
            _times(row["cpu_ms_per_stream"], base),
            f"{row['streams_per_cpu_second']:g}",
            f"{row['first_byte_ms']:g}",
            f"{row['first_token_ms']:g}",
            f"{row['stream_ms']:g}",
        ]
        for name, row in short.items()
    ]
    head = ["", "CPU ms a stream", "streams per core and second", "first byte ms", "first token ms", "whole ms"]
    begin = (
        f"Streams of {result['short_events']} events at full speed, one after the other; medians of {result['rounds']}"
        " interleaved rounds. In brackets: times the bare pass-through, a function that does nothing but relay."
        " Tollgate's and LiteLLM's figures include knowing the key and keeping the budget (Tollgate's in a table,"
        " LiteLLM's in memory). "
    )
    versions = f"LiteLLM {result['litellm_version']}." if skipped is None else f"LiteLLM was skipped: {skipped}."
    parts = [begin + versions, table(head, rows), _plot("cpu", "Processor time of a short stream")]
    parts += [_starts_of_peers(result), _paced_of_peers(result)]
    return _paragraphs(parts)


def _starts_of_peers(result: Result) -> str:
    rows = [
        [name, f"{row['cpu_seconds']:g}", f"{row['seconds']:g}", f"{row['rss_mb']:g}"]
        for name, row in result["start"].items()
    ]
    words = (
        "From the start of a process to the end of its first answer, byte code there already, the least of several:\n\n"
    )
    return words + table(["", "CPU s", "s", "RSS MB"], rows)


def _paced_of_peers(result: Result) -> str:
    rows = [
        [
            lanes if number == 0 else "",
            name,
            f"{row['cpu_ms_per_stream']:g}",
            f"{row['first_byte_ms']:g}",
            f"{row['first_token_ms']:g}",
            f"{row['first_token_p99_ms']:g}",
            f"{row['rss_mb']:g}",
            f"{row['pss_mb']:g}",
            f"{row['retries']:g}",
        ]
        for lanes, targets in result["paced"].items()
        for number, (name, row) in enumerate(targets.items())
    ]
    head = [
        "streams at a time",
        "",
        "CPU ms a stream",
        "first byte ms",
        "first token ms",
        "p99",
        "RSS MB",
        "PSS MB",
        "sent again",
    ]
    words = (
        f"Streams of {result['paced_events']} events, one every {result['pace_ms']} ms, as a model writes. RSS adds up"
        " all processes of a target; PSS counts a page that n of them share 1/n times. All streams are of one user and"
        " begin at the same instant; one that is refused for a moment (429 `contention`) is sent again after a second,"
        " as Anthropic's clients do, and its time goes on.\n\n"
    )
    return words + table(head, rows) + "\n" + _plot("memory", "Memory by streams at a time")


_peers = _section("Against what else could stand there", "peers", "`make bench`", _peers_body)


# --- Quota ----------------------------------------------------------------------------------------------------------


def _quota_body(result: Result) -> str:
    rows = [
        [
            row["target"],
            row["bound"],
            f"{row['max_tokens']}",
            f"{row['served_in_burst']} of {result['callers']}",
            f"{row['served_after']}",
            f"{row['overspent_percent']:g} %",
            f"{row['unspent_percent']:g} %",
            ", ".join(row["refusals"]),
        ]
        for row in result["rows"]
    ]
    head = ["", "bound", "max_tokens", "served at once", "served after", "overspent", "unspent", "refused with"]
    words = (
        f"{result['callers']} callers of one key begin at the same moment; there is room for exactly"
        f" {result['messages_that_fit']} messages of {result['tokens_of_a_message']} tokens. Then one caller goes on"
        " alone until it is refused three times in a row. `max_tokens` is 100, which is what is used, or 1000, ten"
        " times as much, as clients usually ask. Spent is what the answers that were delivered say.\n\n"
    )
    return words + table(head, rows) + "\n" + _plot("quota", "Where a quota of twenty messages went")


_quota = _section("How exactly a quota is kept", "quota", "`make bench`", _quota_body)


# --- One request ----------------------------------------------------------------------------------------------------


_CPU_NOTE: Final = """\
The counts hold anywhere; the CPU of one and the same stream changes by a factor of two with what else the processor
does, and so does that of the pass-through, whose streams were measured in turn with ours: compare the two columns. Why
the target for a stream is missed: [decisions.md](decisions.md#what-a-streams-cpu-is-spent-on)."""


def _requests_body(result: Result) -> str:
    calls = result["table"]["calls_per_request"]
    units = result["table"]["capacity_units_per_request"]
    rows = [[f"`{name}`", f"{calls[name]:g}", f"{units.get(name, 0):g}"] for name in calls]
    stream, floor = result["stream"], result["floor"]
    costs = [
        ["CPU ms of a stream, without its database calls", "cpu_ms_per_stream_outside_database"],
        ["CPU ms in its database calls", "cpu_ms_in_database_calls"],
        ["CPU us of an event, paced", "cpu_us_per_paced_event"],
        ["CPU us of an event, at full speed", "cpu_us_per_burst_event"],
    ]
    figures = [[words, f"{stream[name]:g}", f"{floor[name]:g}"] for words, name in costs]
    steps = [
        [words, *(f"{result['steps'][of][name]:,g}" for of in ("stream", "floor"))]
        for words, name in (
            ("calls of functions in a stream, without its database calls", "per_stream_outside_database"),
            ("calls of functions in its database calls", "per_stream_in_database_calls"),
            ("calls of functions in an event, paced", "per_event"),
        )
    ]
    targets = [
        [f"`{name}`", f"{row['figure']:g}", f"{row['target']:g}", "met" if row["met"] else "**missed**"]
        for name, row in result["targets"].items()
    ]
    return _paragraphs(
        [
            "Database calls of a stream, everything warm, counted before the engine:",
            table(["call", "times", "capacity units"], rows),
            "A stop-watch inside of the function's process:",
            table(["", "Tollgate", "bare pass-through"], [*figures, *steps]),
            _CPU_NOTE,
            "What was aimed at before it was built:",
            table(["figure", "measured", "target", ""], targets),
        ]
    )


_requests = _section("What one request does", "claude", "`make bench`", _requests_body)


def _costs_body(result: Result) -> str:
    lengths = result["usd_per_million_by_model_seconds"]
    names = {
        "lambda_waiting": "Lambda, while the model writes",
        "lambda_own": "Lambda, Tollgate's own time",
        "lambda_requests": "Lambda, invocations and function URL",
        "table": "DynamoDB, on demand",
        "logs": "CloudWatch Logs",
        "all": "**together**",
    }
    rows = [[words, *(f"${row[name]:,.2f}" for row in lengths.values())] for name, words in names.items()]
    head = ["US dollars", *(f"model writes {seconds} s" for seconds in lengths)]
    units = ", ".join(f"{amount:g} of `{name}`" for name, amount in result["units"].items())
    words = (
        f"Prices: {result['prices']}. Measured: own time {result['own_ms']:g} ms a stream, log {result['log_bytes']:g}"
        f" bytes, capacity units {units}.\n\n```\n{result['formula']}\n```\n\n"
    )
    return words + table(head, rows)


_costs = _section("What a million requests cost", "costs", "`make bench`", _costs_body)


# --- Starts ---------------------------------------------------------------------------------------------------------


def _starts_body(result: Result) -> str:
    has_sizes = "layers_mb" in result
    rows = [
        [
            f"`{name}`",
            f"{row['modules']}",
            f"{row['cpu_seconds']:g}",
            _times(row["cpu_seconds_without_byte_code"], row["cpu_seconds"]),
            f"{row['rss_mb']:g}",
            f"{row['rss_mb_without_byte_code']:g}",
            *(
                [f"{row['package_mb']:g}" if "package_mb" in row else "", f"{row.get('own_kb', 0):g}"]
                if has_sizes
                else []
            ),
        ]
        for name, row in result["functions"].items()
    ]
    head = ["function", "modules", "CPU s", "without byte code", "RSS MB", "without byte code"]
    head += ["with its layers MB", "itself KB"] if has_sizes else []
    words = (
        f"Import of the handler and everything that the first request builds, in a fresh process; the least of several."
        f" Measured from: {result['measured_from']}. `tests/bench/test_starts.py` enforces budgets of modules.\n\n"
    )
    return words + table(head, rows) + "\n" + _plot("starts", "Processor time of a start, with byte code and without")


_starts = _section("Cold start and size", "starts", "`make bench`", _starts_body)


# --- Soak, growth, chaos --------------------------------------------------------------------------------------------


def _soak_body(result: Result) -> str:
    ledger, memory, files = result["ledger"], result["memory"], result["open_files"]
    rows = [
        ["requests", f"{result['requests']:,} in {result['seconds']:g} s"],
        ["processes", f"{result['processes']}"],
        ["failed invocations", f"{len(result['failed_invocations'])}"],
        ["RSS of a process at the end", f"{memory['rss_mb_of_a_process']:g} MB"],
        ["growth, second to last quarter", f"{memory['mean_growth_mb']:g} MB, at most {memory['most_grown_mb']:g} MB"],
        ["growth of the usage function, with the records it reads", f"{memory['usage_grown_with_records_mb']:g} MB"],
        ["the same, asked again on the same records", f"{memory['usage_grown_on_the_same_mb']:g} MB"],
        ["open files of a process", f"at most {files['most_of_a_process']}, grown by {files['most_grown']}"],
        ["meters, records and callers differ", f"{len(ledger['differences'])} times in {ledger['records']:,} records"],
        ["tokens that callers were told of", f"{ledger['told_tokens_of_whole_answers']:,}"],
        ["tokens that were booked for the same", f"{ledger['booked_tokens_of_whole_answers']:,}"],
        ["open reservations at the end", f"{ledger['open_reservations']}"],
        ["tokens over a hard quota", f"{ledger['over_hard_quota_tokens']}"],
    ]
    answers = [
        [name.rpartition(": ")[0], name.rpartition(": ")[2], f"{count}"] for name, count in result["answers"].items()
    ]
    return _paragraphs(
        [
            table(["", ""], rows),
            _plot("soak", "Memory of all processes"),
            table(["what was sent", "status", "times"], answers),
        ]
    )


_soak = _section("An hour of traffic in ten minutes", "soak", "`make soak`", _soak_body)


def _growth_body(result: Result) -> str:
    head = ["users", "of them due", "closed", "calls", "items read", "read units", "write units", "s"]
    tables = []
    for words, name in (("All users grow", "by_users"), ("Only those who are due grow", "by_due_users")):
        rows = [
            [
                f"{row['users']:,}",
                f"{row['due_users']:,}",
                f"{row['closed_periods']:,}",
                f"{sum(row['calls'].values()):,}",
                f"{row['items_read']:,}",
                f"{row['read_units']:,}",
                f"{row['write_units']:,}",
                f"{row['seconds']:g}",
            ]
            for row in result[name]
        ]
        tables += [f"{words}:", table(head, rows)]
    return _paragraphs([*tables, _plot("growth", "What a run of the scheduled job reads, by users")])


def _chaos_body(result: Result) -> str:
    targets = result["targets"]
    counts = [
        [name.replace("_", " "), f"{count:,}", f"{targets[name]['wanted']:,}" if name in targets else ""]
        for name, count in result["counts"].items()
    ]
    found = [[name.replace("_", " "), f"{count:,}"] for name, count in result["found"].items()]
    return _paragraphs(
        [
            "What was done to it, through sockets, on an exact engine:",
            table(["", "times", "wanted at least"], counts),
            "What was found wrong afterwards, in the table, in the answers and at the upstream:",
            table(["", "times"], found),
        ]
    )


def _if_measured(name: str, section: Callable[[_Results], str]) -> Callable[[_Results], str]:
    """A section that is there from its first result on."""
    return lambda found: "" if found.find(name) is None else section(found)


_growth = _if_measured(
    "usage_reset", _section("Closing periods, by users", "usage_reset", "`python -m bench.usage_reset`", _growth_body)
)
_chaos = _if_measured("chaos", _section("Under fire", "chaos", "`make chaos`", _chaos_body))


# --- Plots ----------------------------------------------------------------------------------------------------------


def _cpu_plot(root: Path) -> str:
    result, title = _Results(root).find("peers"), "Processor time of a short stream"
    if result is None:
        return charts.empty(title)
    rows = [(name, result["short"][name]["cpu_ms_per_stream"]) for name in NAMES if name in result["short"]]
    return charts.bars(title, "ms, less is better", [Bar(name, (value,), f"{value:g} ms") for name, value in rows])


def _memory_plot(root: Path) -> str:
    result, title = _Results(root).find("peers"), "Memory by streams at a time"
    if result is None:
        return charts.empty(title)
    series = {
        name: [(float(lanes), row[name]["pss_mb"]) for lanes, row in result["paced"].items() if name in row]
        for name in NAMES[1:]
    }
    kept = {name: line for name, line in series.items() if line}
    return charts.lines(
        title, "MB (PSS), both scales logarithmic", kept, across="streams at a time", log=True, colours=COLOUR_OF
    )


def _quota_plot(root: Path) -> str:
    result, title = _Results(root).find("quota"), "Where a quota of twenty messages went"
    if result is None:
        return charts.empty(title)
    rows = [
        Bar(
            f"{row['target']}, {row['bound'].replace('max_budget, strict', 'strict')}, {row['max_tokens']}",
            _shares(row),
            f"{100 - row['unspent_percent'] + row['overspent_percent']:g} %",
        )
        for row in result["rows"]
    ]
    return charts.bars(title, "percent of the quota", rows, parts=_QUOTA_PARTS)


_QUOTA_PARTS: Final = {"in the burst": 2, "after it": 4, "unspent": 5, "overspent": 3}


def _shares(row: Mapping[str, Any]) -> tuple[float, ...]:
    burst = min(100.0, row["spent_in_burst_percent"])
    return burst, 100.0 - row["unspent_percent"] - burst, row["unspent_percent"], row["overspent_percent"]


def _starts_plot(root: Path) -> str:
    result, title = _Results(root).find("starts"), "Processor time of a start"
    if result is None:
        return charts.empty(title)
    rows = []
    for name, row in result["functions"].items():
        whole = row["cpu_seconds_without_byte_code"]
        parts = (row["cpu_seconds"], max(0.0, whole - row["cpu_seconds"]))
        rows.append(Bar(name, parts, f"{row['cpu_seconds']:.2f} / {whole:.2f} s"))
    return charts.bars(title, "s", rows, parts={"with byte code": 2, "more without": 4})


def _growth_plot(root: Path) -> str:
    result, title = _Results(root).find("usage_reset"), "What a run of the scheduled job reads"
    if result is None:
        return charts.empty(title)
    series = {
        words: [(float(row["users"]), float(max(1, row[name]))) for row in result["by_users"]]
        for words, name in (("items read", "items_read"), ("read units", "read_units"))
    }
    return charts.lines(title, "both scales logarithmic", series, across="users", log=True, colours={"items read": 2})


def _soak_plot(root: Path) -> str:
    result, title = _Results(root).find("soak"), "Memory of all processes during the soak"
    if result is None:
        return charts.empty(title)
    line: Sequence[tuple[float, float]] = [(each["at_seconds"], each["rss_mb"]) for each in result["samples"]]
    return charts.lines(title, "MB", {"RSS": line}, across="seconds", colours={"RSS": 2})


PLOTS: Final[Mapping[str, Callable[[Path], str]]] = {
    f"{PLOTS_FOLDER}/{name}.svg": plot
    for name, plot in {
        "cpu": _cpu_plot,
        "memory": _memory_plot,
        "quota": _quota_plot,
        "starts": _starts_plot,
        "growth": _growth_plot,
        "soak": _soak_plot,
    }.items()
}


def write_page() -> None:
    """Puts the page and its plots in place, after a run."""
    root = Path(__file__).resolve().parents[1]
    (root / "docs" / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name, content in {"benchmarks.md": page, **PLOTS}.items():
        (root / "docs" / name).write_text(content(root), encoding="utf-8")
