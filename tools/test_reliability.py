#!/usr/bin/env python3
"""Tests of tools/reliability.py: what is found in sources and logs, and what it refuses. `make reliability` runs them."""

import unittest

import reliability
from reliability import Wrong

RUST = """//! F01 here is no test's.

/// F02, F03.
#[test]
fn with_a_doc() {
    // F04
    fn helper() {}
    // No number at the beginning: F05.
    let x = 1;
}

fn no_test() {
    // Nothing.
}

#[tokio::test]
async fn f07_by_its_name() {}

#[cfg(test)]
mod tests {
    /// F08: why.
    #[test]
    fn inside() {
        // F09
    }
}
"""

LOG = """
running 3 tests
test a::good ... ok
test a::bad ... FAILED
test a::looked_at_nothing ... ok
test a::left_out ... ignored

successes:

---- a::looked_at_nothing stdout ----
SKIPPED: there is nothing to look at

== first
ok   it is so
     2 s
== second
FAIL it is not so
     1 s
== third
ok   and then it broke
"""


def case(number, **more):
    return {"number": number, "case": "c", "holds": "h"} | more


class Sources(unittest.TestCase):
    def test_a_rust_test_has_the_numbers_above_in_and_of_it(self):
        found = reliability.rust_tests(RUST, ["room"], "room.rs")
        self.assertEqual(found, [
            ("F02", "room::with_a_doc"), ("F03", "room::with_a_doc"), ("F04", "room::with_a_doc"), ("F07", "room::f07_by_its_name"),
            ("F08", "room::tests::inside"), ("F09", "room::tests::inside"),
        ])

    def test_a_number_at_no_test_is_refused(self):
        for text in ("/// F02.\nfn helper() {}\n", "/// F02.\nstruct S;\n", "fn helper() {\n    // F02\n    let x = 1;\n}\n"):
            with self.assertRaises(Wrong):
                reliability.rust_tests(text, [], "x.rs")

    def test_a_step_has_the_numbers_above_it(self):
        self.assertEqual(reliability.python_steps('# F44, F45\nwith step("texts"):\n    pass\n', "x.py"), [("F44", "texts"), ("F45", "texts")])
        with self.assertRaises(Wrong):
            reliability.python_steps("# F44\nx = 1\n", "x.py")


class Run(unittest.TestCase):
    def test_each_end_is_told_apart(self):
        self.assertEqual(reliability.outcomes_of(LOG), {
            "a::good": "pass", "a::bad": "FAIL", "a::looked_at_nothing": "skipped", "a::left_out": "not run",
            "first": "pass", "second": "FAIL", "third": "FAIL",
        })

    def test_what_is_not_looked_at_does_not_pass(self):
        for outcomes, result in ((["pass", "skipped"], "pass"), (["skipped"], "skipped"), (["pass", "FAIL"], "FAIL"), (["not run"], "not run"), ([], "no test")):
            self.assertEqual(reliability.result_of(outcomes), result)

    def test_what_is_missing_is_refused(self):
        tests = {"F01": [("a.rs", "a::good")]}
        rows = reliability.judged([case("F01"), case("F02", reason="none can")], tests, {"a::good": "pass"}, [])
        self.assertEqual([row["result"] for row in rows], ["pass", "no test"])
        for cases, outcomes in (
            ([case("F01"), case("F02")], {"a::good": "pass"}),
            ([case("F01", reason="none can")], {"a::good": "pass"}),
            ([case("F01")], {}),
            ([case("F02", reason="none can")], {"a::good": "pass"}),
        ):
            with self.assertRaises(Wrong):
                reliability.judged(cases, tests, outcomes, [])
        self.assertEqual(reliability.judged([case("F01")], tests, {}, ["a.rs"])[0]["result"], "not run")

    def test_a_cell_is_one_line_of_the_table(self):
        rows = reliability.judged([case("F01", note="a|b\nc")], {"F01": [("a.rs", "a::bad")]}, {"a::bad": "FAIL"}, [])
        self.assertIn("| F01 | c | h | **FAIL** | `a::bad` (FAIL)<br>a\\|b c |\n", reliability.page(rows))


if __name__ == "__main__":
    unittest.main()
