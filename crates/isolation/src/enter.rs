//! How a process without a capability forks into a slot: a few lines for its processor.
//!
//! setns(2) asks for SYS_ADMIN over the namespace that is entered. A process that holds no capability has it all the same
//! over a user namespace that its own uid has made (user_namespaces(7), "Capabilities"), but gives up the one that it
//! is in: a zygote that entered a slot would never get out again. So a second process enters, one that shares the zygote's
//! memory and is gone before the zygote goes on, and that one forks:
//!
//! ```text
//! zygote ── clone3(VM | VFORK | INTO_CGROUP) ──▶ helper: setns(user), setns(pid), fork() ──▶ child, a copy of the zygote: its steps
//!   └──────────── goes on once the helper is gone ◀┄┄ exits
//! ```
//! `fork` is the C library's, so that its handlers run and it knows its thread's number. The child is born in the slot's
//! cgroup: joining it would wait for a grace period of RCU.
//!
//! What a child does to enter the rest of the slot and to drop what it has is a list of system calls, its *steps*. They are made before
//! the first line of the interpreter runs in it, which would copy a page of the zygote's memory for most things that it touches.
//!
//! The code is bytes without relocations, so that a confined process maps them from a file, executable and not writable.

/// The code of `long enter_and_fork(struct fork *)`, where all fields are of 64 bits:
///
/// ```c
/// struct fork {
///     struct clone_args *args; size_t args_size;
///     int user, pids;             // namespaces of the slot
///     pid_t (*fork)(void);
///     long child;                 // out: its number, or a negative error number, -EAGAIN for whatever kept `fork` from it
///     struct step *first, *end;   // what the child does
///     struct step *failed;        // out, in the child: the step that failed, and its negative error number; it did none after that
///     long error;
/// };
/// struct step { long number, arguments[6]; };
/// ```
/// Returns 0 in the child; in the caller the helper's number, which is to be waited for, or a negative error number.
pub fn code() -> &'static [u8] {
    imp::code()
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod imp {
    std::arch::global_asm!(
        ".pushsection .rodata.sock_enter_and_fork, \"a\"",
        ".globl sock_enter_and_fork_start, sock_enter_and_fork_end",
        ".hidden sock_enter_and_fork_start, sock_enter_and_fork_end",
        "sock_enter_and_fork_start:",
        // One word aligns the stack for calls; `rbx` they leave alone.
        "push rbx",
        "mov rbx, rdi",
        "mov rdi, [rbx]",
        "mov rsi, [rbx + 8]",
        "mov eax, 435", // clone3
        "syscall",
        "test rax, rax",
        "jnz 9f",
        // The helper: on the zygote's stack, below its frame, while the kernel holds the zygote.
        "mov edi, [rbx + 16]",
        "mov esi, 0x10000000", // CLONE_NEWUSER
        "mov eax, 308",        // setns
        "syscall",
        "test rax, rax",
        "js 2f",
        "mov edi, [rbx + 24]",
        "mov esi, 0x20000000", // CLONE_NEWPID
        "mov eax, 308",
        "syscall",
        "test rax, rax",
        "js 2f",
        "call [rbx + 32]",
        "movsxd rax, eax",
        "test eax, eax",
        "jz 3f",
        "jns 2f",
        "mov rax, -11", // EAGAIN: why is in errno, which nobody asks for
        "2:",
        "mov [rbx + 40], rax",
        "xor edi, edi",
        "mov eax, 60", // exit
        "syscall",
        "ud2",
        // The child.
        "3:",
        "push r12",
        "mov r12, [rbx + 48]",
        "4:",
        "cmp r12, [rbx + 56]",
        "jae 7f",
        "mov rax, [r12]",
        "mov rdi, [r12 + 8]",
        "mov rsi, [r12 + 16]",
        "mov rdx, [r12 + 24]",
        "mov r10, [r12 + 32]",
        "mov r8, [r12 + 40]",
        "mov r9, [r12 + 48]",
        "syscall",
        "test rax, rax",
        "jns 5f",
        "mov [rbx + 64], r12",
        "mov [rbx + 72], rax",
        "jmp 7f",
        "5:",
        "add r12, 56",
        "jmp 4b",
        "7:",
        "pop r12",
        "xor eax, eax",
        "9:",
        "pop rbx",
        "ret",
        "sock_enter_and_fork_end:",
        ".popsection",
    );

    unsafe extern "C" {
        static sock_enter_and_fork_start: u8;
        static sock_enter_and_fork_end: u8;
    }

    pub(super) fn code() -> &'static [u8] {
        let (start, end) = (&raw const sock_enter_and_fork_start, &raw const sock_enter_and_fork_end);
        // SAFETY: both are labels of the one block above, the second after the first, and what is between them is
        // read-only data that is initialised and lives as long as the program. It is only read here.
        unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    /// None is written yet for this processor: a zygote then says so instead of forking.
    pub(super) fn code() -> &'static [u8] {
        &[]
    }
}
