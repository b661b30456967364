//! Programs that compile, and programs that do not, with what the compiler says about them.
//!
//! `TRYBUILD=overwrite cargo test -p nestling-macros --test ui` writes the messages anew; read them.

#[test]
fn programs_compile_or_say_why_not() {
    let tests = trybuild::TestCases::new();
    tests.pass("tests/ui/pass/*.rs");
    tests.compile_fail("tests/ui/fail/*.rs");
}
