//! Files and functions that one can read.

use super::source::{Source, closing, find_outside, occurrences};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

pub fn faults(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let file = (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines of {FILE_LINES_MAX}", source.path));
    file.into_iter().chain(long_functions(source)).collect()
}

fn long_functions(source: &Source) -> Vec<String> {
    let length = |at: usize| {
        let body = find_outside(&source.code, at, b"{;")?;
        let end = if source.code.as_bytes()[body] == b'{' { closing(&source.code, body) } else { body };
        let lines = source.line_of(end) + 1 - source.line_of(at);
        let long = lines > FUNCTION_LINES_MAX;
        long.then(|| source.fault(at, &format!("a function of {lines} lines; {FUNCTION_LINES_MAX} are allowed")))
    };
    occurrences(&source.code, "fn ").into_iter().filter_map(length).collect()
}

#[test]
fn a_long_file_and_a_long_function_are_found() {
    let long = |lines: usize| format!("fn x(a: [u8; 2]) {{\n{}}}\n", "    a();\n".repeat(lines - 2));
    assert_eq!(faults(&Source::new("src/x.rs", &long(FUNCTION_LINES_MAX))).len(), 0);
    assert_eq!(faults(&Source::new("src/x.rs", &long(FUNCTION_LINES_MAX + 1))).len(), 1);
    assert_eq!(faults(&Source::new("src/x.rs", &"\n".repeat(FILE_LINES_MAX + 1))).len(), 1);
}
