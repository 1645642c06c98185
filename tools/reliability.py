#!/usr/bin/env python3
"""Writes docs/RELIABILITY.md: each promise of tools/reliability.toml with its tests and how they ended.

`reliability.py LOG... [--output docs/RELIABILITY.md] [--without FILE]`

A test names the promises it holds in a comment that begins with their numbers (`/// F24, F59.` before it, `// F24` in
it) or in its own name (`f07_every_route_…`). Scripts whose parts are called `step("name")` are tests, too: a comment
`# F44` stands before the step. A LOG is what such a run wrote to standard output: of `cargo test -- --show-output`,
and of the scripts. `make reliability` makes them.

Fails where a promise has neither a test nor a reason for having none, where a test is not in the logs, where a number
is of no promise, and where a test failed. `--without` names a script that was not run: its steps are shown as such.
Standard library only.
"""

import argparse
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = ROOT / "tools" / "reliability.toml"
NUMBERS = r"F\d\d(?:, F\d\d)*"
RUST_COMMENT = re.compile(rf"\s*(///?)\s*({NUMBERS})\b")
RUST_FUNCTION = re.compile(r"(\s*)(?:pub(?:\(\w+\))? )?(?:async )?fn (\w+)")
RUST_MODULE = re.compile(r"mod (\w+) \{")
PYTHON_COMMENT = re.compile(rf"\s*#\s*({NUMBERS})\b")
PYTHON_STEP = re.compile(r"""\s*with step\("([^"]+)"\)""")
RESULT = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)")
OUTPUT_OF = re.compile(r"^---- (\S+) stdout ----$")
STEP_BEGINS = re.compile(r"^== (.+)$")
STEP_ENDED = re.compile(r"^\s+\d+ s$")
# From the best to the worst.
ORDER = ["pass", "skipped", "not run", "FAIL"]


class Wrong(Exception):
    """Something that must be mended in the sources, the list or the run."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=pathlib.Path, help="what the test runs wrote")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "RELIABILITY.md")
    parser.add_argument("--without", action="append", default=[], help="a script that was not run, such as tests/browser/dashboard.py")
    arguments = parser.parse_args()
    try:
        cases = tomllib.loads(CASES.read_text(encoding="utf-8"))["case"]
        tests = tests_by_number(ROOT)
        outcomes = {}
        for log in arguments.logs:
            outcomes.update(outcomes_of(log.read_text(encoding="utf-8", errors="replace")))
        rows = judged(cases, tests, outcomes, arguments.without)
    except Wrong as problem:
        sys.exit(f"error: {problem}")
    arguments.output.write_text(page(rows), encoding="utf-8")
    failed = [row["number"] for row in rows if row["result"] == "FAIL"]
    print(summary(rows))
    sys.exit(f"error: failed: {', '.join(failed)}" if failed else 0)


# --- the sources --------------------------------------------------------------------------------


def tests_by_number(root):
    """For each number the tests that name it, as `(file, name)` in the order of the files."""
    found = {}
    for folder, strip in (("src", 1), ("tests/it", 2)):
        for path in sorted((root / folder).rglob("*.rs")):
            place = path.relative_to(root)
            module = [part for part in place.with_suffix("").parts[strip:] if part not in ("mod", "lib", "main")]
            for number, name in rust_tests(path.read_text(encoding="utf-8"), module, place):
                found.setdefault(number, []).append((str(place), name))
    for path in sorted((root / "tests").rglob("*.py")):
        if ".venv" not in path.parts:
            place = path.relative_to(root)
            for number, name in python_steps(path.read_text(encoding="utf-8"), place):
                found.setdefault(number, []).append((str(place), name))
    return {number: list(dict.fromkeys(tests)) for number, tests in found.items()}


def rust_tests(text, module, place):
    """`(number, path of the test)` of each test of a file whose own path is `module`."""
    found, inner = [], []
    # What stands directly above the next function; the test that the lines are in, and how far it is indented.
    waiting, is_test, current, depth = [], False, None, 0
    for at, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if opened := RUST_MODULE.match(line):
            inner, current = [opened[1]], None
        elif line == "}":
            inner, current = [], None
        if function := RUST_FUNCTION.match(line):
            name = "::".join([*module, *inner, function[2]])
            if is_test:
                current, depth = name, len(function[1])
                own = re.match(r"f(\d\d)_", function[2])
                found += [(number, name) for number in waiting + ([f"F{own[1]}"] if own else [])]
            elif waiting:
                raise Wrong(f"{place}:{at}: {', '.join(waiting)} stands at '{function[2]}', which is no test")
            elif len(function[1]) <= depth:
                current = None
            waiting, is_test = [], False
        elif comment := RUST_COMMENT.match(line):
            numbers = comment[2].split(", ")
            if comment[1] == "//" and current and len(line) - len(line.lstrip()) > depth:
                found += [(number, current) for number in numbers]
            else:
                waiting += numbers
        elif stripped.startswith("#["):
            is_test = is_test or stripped == "#[test]" or stripped.startswith("#[tokio::test")
        elif not stripped.startswith("//"):
            if waiting:
                raise Wrong(f"{place}:{at - 1}: {', '.join(waiting)} stands at no test")
            is_test = False
    return found


def python_steps(text, place):
    found, waiting = [], []
    for at, line in enumerate(text.splitlines(), 1):
        if comment := PYTHON_COMMENT.match(line):
            waiting += comment[1].split(", ")
        elif waiting:
            step = PYTHON_STEP.match(line)
            if not step:
                raise Wrong(f"{place}:{at}: {', '.join(waiting)} stands at no step")
            found += [(number, step[1]) for number in waiting]
            waiting = []
    return found


# --- the run ------------------------------------------------------------------------------------


def outcomes_of(text):
    """How each test and step of a log ended. A test that says why it looks at nothing here is skipped, not passed."""
    outcomes, skipped, output, step = {}, set(), None, None
    for line in text.splitlines():
        if result := RESULT.match(line):
            outcomes[result[1]] = {"ok": "pass", "FAILED": "FAIL", "ignored": "not run"}[result[2]]
            output = None
        elif begun := OUTPUT_OF.match(line):
            output = begun[1]
        elif output and line.startswith("SKIPPED"):
            skipped.add(output)
        elif begun := STEP_BEGINS.match(line):
            step = begun[1]
            # Until it says that it ended.
            outcomes[step] = "FAIL"
            bad = False
        elif step and line.startswith("FAIL"):
            bad = True
        elif step and STEP_ENDED.match(line):
            outcomes[step] = "FAIL" if bad else "pass"
            step = None
    return outcomes | {test: "skipped" for test in skipped if outcomes.get(test) == "pass"}


def judged(cases, tests, outcomes, without):
    """A row for each case, with the outcome of each of its tests."""
    if unknown := sorted(set(tests) - {case["number"] for case in cases}):
        raise Wrong(f"{', '.join(unknown)} of {tests[unknown[0]][0][0]} is no number of tools/reliability.toml")
    rows = []
    for case in cases:
        own = tests.get(case["number"], [])
        if not own and "reason" not in case:
            raise Wrong(f"{case['number']} ({case['case']}) has neither a test nor a reason for having none")
        if own and "reason" in case:
            raise Wrong(f"{case['number']} has tests, such as {own[0][1]}, and a reason for having none")
        ended = []
        for place, name in own:
            if name not in outcomes and place not in without:
                raise Wrong(f"{case['number']}: '{name}' of {place} is not in the logs")
            ended.append((name, outcomes.get(name, "not run")))
        rows.append(case | {"tests": ended, "result": result_of([outcome for _, outcome in ended])})
    return rows


def result_of(outcomes):
    if not outcomes:
        return "no test"
    # What was not looked at here does not spoil what was; where nothing was looked at, nothing passed.
    worst = max(outcomes, key=ORDER.index)
    return "pass" if worst != "FAIL" and "pass" in outcomes else worst


# --- the page -----------------------------------------------------------------------------------


def summary(rows):
    counts = {result: sum(row["result"] == result for row in rows) for result in ["pass", "FAIL", "skipped", "not run", "no test"]}
    words = [f"{count} {result}" for result, count in counts.items() if count or result in ("pass", "FAIL")]
    return f"{len(rows)} cases: {', '.join(words)}."


def page(rows):
    lines = [
        "# Reliability",
        "",
        "What Ortus does when something goes wrong or somebody means harm, each with the tests that hold it to it. Made by",
        "`make reliability` from the list in `tools/reliability.toml` and from a run of the tests: change those, not this page.",
        "The tests named `faults_…` check besides, after each attack: it is the same process, ready, answers the next request as",
        "before, and has given back memory, files and threads; its log is whole lines, and each refusal of a request is one of them,",
        "with the request's id and the reason; beyond 20 a second of one reason, one line a second says how many more there were.",
        "Reasons that are no matter of content are counted in `ortus_rejected_total`.",
        "",
        f"**{summary(rows)}** *skipped*: the machine of the run had not what the test needs, which then says so.",
        "",
        "| | Case | What holds | Result | Tests |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append("| " + " | ".join(cell(text) for text in (row["number"], row["case"], row["holds"], shown(row), tests_cell(row))) + " |")
    return "\n".join(lines) + "\n"


def shown(row):
    return f"**{row['result']}**" if row["result"] == "FAIL" else row["result"]


def tests_cell(row):
    if not row["tests"]:
        return f"None: {row['reason']}"
    names = [f"`{name}`" + ("" if outcome == "pass" else f" ({outcome})") for name, outcome in row["tests"]]
    return "<br>".join(names + ([row["note"]] if "note" in row else []))


def cell(text):
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
