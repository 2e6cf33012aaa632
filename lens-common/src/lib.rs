//! What the kernel programs and the agent share: `repr(C)` types without hidden padding, limits,
//! and the arithmetic that both must do alike.
#![no_std]
