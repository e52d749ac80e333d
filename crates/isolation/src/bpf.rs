//! A compiler from a table "system call number → verdict" to a seccomp filter.
//!
//! The program is a binary search over ranges of numbers, because a filter is installed on the way to an answer and a
//! linear one costs five times as much to install (and, for what its tail holds, to run). See seccomp(2) and the
//! kernel's Documentation/userspace-api/seccomp_filter.rst.
//!
//! Knows nothing of which calls are good: that is [`crate::seccomp`].

use std::collections::BTreeMap;

use libc::sock_filter;

/// What becomes of a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// It is made if every test on its arguments passes, else fails with this error number.
    If(Vec<Test>, u16),
}

/// A test on the low 32 bits of one argument (0 to 5): all that the tested calls have in theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// None of these bits is set.
    NoBits {
        /// Which argument.
        argument: u8,
        /// The bits.
        bits: u32,
    },
    /// After masking, the argument is one of these.
    OneOf {
        /// Which argument.
        argument: u8,
        /// The bits that are looked at.
        mask: u32,
        /// The values that pass.
        values: Vec<u32>,
    },
    /// Not one of `first` in one argument together with one of `second` in another.
    NotBoth {
        /// Which argument, and its values.
        first: (u8, Vec<u32>),
        /// Which other argument, and its values.
        second: (u8, Vec<u32>),
    },
    /// The argument is none of these.
    NoneOf {
        /// Which argument.
        argument: u8,
        /// The values that do not pass.
        values: Vec<u32>,
    },
}

/// A compiled filter.
pub type Program = Vec<sock_filter>;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;

// Offsets into `struct seccomp_data`; arguments are 64 bits each, little-endian on both architectures.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: usize, jf: usize) -> sock_filter {
    // The callers keep every jump within one leaf, or go by `JUMP`, whose offset has 32 bits.
    let near = |offset: usize| u8::try_from(offset).unwrap_or(u8::MAX);
    sock_filter { code, jt: near(jt), jf: near(jf), k }
}

/// Compiles `table`; what it does not list gets `otherwise`. A call by another architecture's numbers kills the process.
pub fn compile(audit_architecture: u32, table: &BTreeMap<u32, Verdict>, otherwise: Verdict) -> Program {
    let mut ranges: Vec<(u32, Verdict)> = vec![(0, otherwise.clone())];
    for (&number, verdict) in table {
        for (start, verdict) in [(number, verdict.clone()), (number + 1, otherwise.clone())] {
            match ranges.last_mut() {
                Some(last) if last.0 == start => last.1 = verdict,
                _ => ranges.push((start, verdict)),
            }
        }
    }
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, audit_architecture, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER),
    ];
    program.extend(search(&ranges));
    program
}

/// The part of the program that knows the number to be in one of `ranges`. Every path through it ends in a return.
fn search(ranges: &[(u32, Verdict)]) -> Program {
    let [single] = ranges else {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (below, above) = (search(low), search(high));
        let mut program = if below.len() <= usize::from(u8::MAX) {
            vec![branch(IF_AT_LEAST, high[0].0, below.len(), 0)]
        } else {
            vec![branch(IF_AT_LEAST, high[0].0, 0, 1), statement(JUMP, below.len() as u32)]
        };
        program.extend(below);
        program.extend(above);
        return program;
    };
    leaf(&single.1)
}

fn leaf(verdict: &Verdict) -> Program {
    let refuse = |errno: u16| statement(RETURN, libc::SECCOMP_RET_ERRNO | u32::from(errno));
    match verdict {
        Verdict::Allow => vec![statement(RETURN, libc::SECCOMP_RET_ALLOW)],
        Verdict::Errno(errno) => vec![refuse(*errno)],
        Verdict::If(tests, errno) => {
            let mut program = Program::new();
            for test in tests {
                program.extend(guard(test, refuse(*errno)));
            }
            program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
            program
        }
    }
}

/// Returns `refusal` unless the test passes; then falls through.
fn guard(test: &Test, refusal: sock_filter) -> Program {
    let load = |argument: u8| statement(LOAD, ARGUMENTS + 8 * u32::from(argument));
    match test {
        Test::NoBits { argument, bits } => vec![load(*argument), branch(IF_BITS, *bits, 0, 1), refusal],
        Test::OneOf { argument, mask, values } => {
            let mut program = vec![load(*argument), statement(AND, *mask)];
            for (index, value) in values.iter().enumerate() {
                // Over the comparisons that are left, and over the refusal.
                program.push(branch(IF_EQUAL, *value, values.len() - index, 0));
            }
            program.push(refusal);
            program
        }
        Test::NotBoth { first, second } => {
            let mut rest = vec![load(second.0)];
            for value in &second.1 {
                rest.extend([branch(IF_EQUAL, *value, 0, 1), refusal]);
            }
            let mut program = vec![load(first.0)];
            let count = first.1.len();
            for (index, value) in first.1.iter().enumerate() {
                // Over the comparisons that are left, and over the jump past the rest.
                program.push(branch(IF_EQUAL, *value, count - index, 0));
            }
            program.push(statement(JUMP, rest.len() as u32));
            program.extend(rest);
            program
        }
        Test::NoneOf { argument, values } => {
            let mut program = vec![load(*argument)];
            for value in values {
                program.extend([branch(IF_EQUAL, *value, 0, 1), refusal]);
            }
            program
        }
    }
}

/// The instructions as the kernel reads them, for a process that installs the filter itself.
pub fn to_bytes(program: &[sock_filter]) -> Vec<u8> {
    let bytes = |i: &sock_filter| [&i.code.to_ne_bytes()[..], &[i.jt, i.jf], &i.k.to_ne_bytes()].concat();
    program.iter().flat_map(bytes).collect()
}

/// The kernel's interpreter, as far as this compiler uses it: what becomes of the call `number` by the numbers of an architecture.
#[cfg(test)]
pub(crate) fn interpret(
    program: &[sock_filter],
    (architecture, number): (u32, u32),
    arguments: [u32; 6],
) -> u32 {
    let (mut at, mut a) = (0, 0u32);
    loop {
        let i = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LOAD => {
                a = match i.k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    k => arguments[((k - ARGUMENTS) / 8) as usize],
                }
            }
            AND => a &= i.k,
            JUMP => at += i.k as usize,
            IF_EQUAL => at += jump(a == i.k),
            IF_AT_LEAST => at += jump(a >= i.k),
            IF_BITS => at += jump(a & i.k != 0),
            RETURN => return i.k,
            code => panic!("unknown instruction {code}"),
        }
    }
}

/// The instructions, one a line, for people to read.
#[cfg(test)]
pub(crate) fn listing(program: &[sock_filter]) -> String {
    let line = |(at, i): (usize, &sock_filter)| {
        let to = |offset: usize| at + 1 + offset;
        let (yes, no) = (to(usize::from(i.jt)), to(usize::from(i.jf)));
        let text = match i.code {
            LOAD => match i.k {
                NUMBER => "load number".to_owned(),
                ARCHITECTURE => "load architecture".to_owned(),
                k => format!("load argument {}", (k - ARGUMENTS) / 8),
            },
            AND => format!("and {:#x}", i.k),
            JUMP => format!("goto {}", to(i.k as usize)),
            IF_EQUAL => format!("if = {:#x} {yes} else {no}", i.k),
            IF_AT_LEAST => format!("if >= {} {yes} else {no}", i.k),
            IF_BITS => format!("if & {:#x} {yes} else {no}", i.k),
            RETURN => match i.k & libc::SECCOMP_RET_ACTION_FULL {
                libc::SECCOMP_RET_ALLOW => "allow".to_owned(),
                libc::SECCOMP_RET_KILL_PROCESS => "kill".to_owned(),
                _ => format!("errno {}", i.k & libc::SECCOMP_RET_DATA),
            },
            code => format!("unknown {code}"),
        };
        format!("{at:4} {text}\n")
    };
    program.iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ARCH: u32 = 0xc000_003e;

    fn run(program: &[sock_filter], number: u32, arguments: [u32; 6]) -> u32 {
        interpret(program, (ARCH, number), arguments)
    }

    fn expected(verdict: &Verdict, arguments: [u32; 6]) -> u32 {
        let pass = |test: &Test| match test {
            Test::NoBits { argument, bits } => arguments[usize::from(*argument)] & bits == 0,
            Test::OneOf { argument, mask, values } => {
                values.contains(&(arguments[usize::from(*argument)] & mask))
            }
            Test::NotBoth { first, second } => {
                let holds =
                    |(argument, values): &(u8, Vec<u32>)| values.contains(&arguments[usize::from(*argument)]);
                !(holds(first) && holds(second))
            }
            Test::NoneOf { argument, values } => !values.contains(&arguments[usize::from(*argument)]),
        };
        match verdict {
            Verdict::Allow => libc::SECCOMP_RET_ALLOW,
            Verdict::If(tests, _) if tests.iter().all(pass) => libc::SECCOMP_RET_ALLOW,
            Verdict::Errno(errno) | Verdict::If(_, errno) => libc::SECCOMP_RET_ERRNO | u32::from(*errno),
        }
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        let values = || prop::collection::vec(0..8u32, 1..4);
        let test = prop_oneof![
            (0..6u8, 0..8u32).prop_map(|(argument, bits)| Test::NoBits { argument, bits }),
            (0..6u8, 0..8u32, values()).prop_map(|(argument, mask, values)| Test::OneOf {
                argument,
                mask,
                values
            }),
            (0..6u8, values()).prop_map(|(argument, values)| Test::NoneOf { argument, values }),
            ((0..6u8, values()), (0..6u8, values()))
                .prop_map(|(first, second)| Test::NotBoth { first, second }),
        ];
        prop_oneof![
            Just(Verdict::Allow),
            (1..130u16).prop_map(Verdict::Errno),
            (prop::collection::vec(test, 1..4), 1..130u16)
                .prop_map(|(tests, errno)| Verdict::If(tests, errno)),
        ]
    }

    proptest! {
        #[test]
        fn a_program_answers_as_its_table_does(
            table in prop::collection::btree_map(0..500u32, verdict(), 0..300),
            calls in prop::collection::vec((0..600u32, prop::array::uniform6(0..8u32)), 40),
        ) {
            let otherwise = Verdict::Errno(38);
            let program = compile(ARCH, &table, otherwise.clone());
            for (number, arguments) in calls.into_iter().chain([(0x4000_0000, [0; 6]), (u32::MAX, [0; 6])]) {
                let verdict = table.get(&number).unwrap_or(&otherwise);
                prop_assert_eq!(run(&program, number, arguments), expected(verdict, arguments));
            }
        }
    }
}
