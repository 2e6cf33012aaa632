//! Nothing, at every hook of the always-on probes: what attaching alone costs. For `cargo xtask
//! bench` only; the agent does not carry it.
#![no_std]
#![no_main]

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use lens_ebpf as _;

macro_rules! empty {
    ($($hook:ident: $name:literal),* $(,)?) => {$(
        #[btf_tracepoint(function = $name)]
        fn $hook(_: BtfTracePointContext) -> i32 {
            0
        }
    )*};
}

empty! {
    balance_dirty_pages: "balance_dirty_pages",
    block_io_start: "block_io_start",
    block_rq_complete: "block_rq_complete",
    block_rq_insert: "block_rq_insert",
    block_rq_issue: "block_rq_issue",
    cgroup_mkdir: "cgroup_mkdir",
    cgroup_rmdir: "cgroup_rmdir",
    contention_begin: "contention_begin",
    contention_end: "contention_end",
    filemap_set_wb_err: "filemap_set_wb_err",
    hrtimer_start: "hrtimer_start",
    inet_sock_set_state: "inet_sock_set_state",
    irq_handler_entry: "irq_handler_entry",
    irq_handler_exit: "irq_handler_exit",
    jbd2_commit_flushing: "jbd2_commit_flushing",
    jbd2_commit_locking: "jbd2_commit_locking",
    jbd2_end_commit: "jbd2_end_commit",
    jbd2_handle_stats: "jbd2_handle_stats",
    jbd2_start_commit: "jbd2_start_commit",
    kfree_skb: "kfree_skb",
    mark_victim: "mark_victim",
    mm_compaction_begin: "mm_compaction_begin",
    mm_compaction_end: "mm_compaction_end",
    mm_filemap_add_to_page_cache: "mm_filemap_add_to_page_cache",
    mm_page_alloc: "mm_page_alloc",
    mm_vmscan_direct_reclaim_begin: "mm_vmscan_direct_reclaim_begin",
    mm_vmscan_direct_reclaim_end: "mm_vmscan_direct_reclaim_end",
    mm_vmscan_kswapd_sleep: "mm_vmscan_kswapd_sleep",
    mm_vmscan_kswapd_wake: "mm_vmscan_kswapd_wake",
    mm_vmscan_memcg_reclaim_begin: "mm_vmscan_memcg_reclaim_begin",
    mm_vmscan_memcg_reclaim_end: "mm_vmscan_memcg_reclaim_end",
    mm_vmscan_throttled: "mm_vmscan_throttled",
    page_fault_kernel: "page_fault_kernel",
    page_fault_user: "page_fault_user",
    rss_stat: "rss_stat",
    sched_migrate_task: "sched_migrate_task",
    sched_process_exec: "sched_process_exec",
    sched_process_exit: "sched_process_exit",
    sched_process_fork: "sched_process_fork",
    sched_switch: "sched_switch",
    sched_wakeup: "sched_wakeup",
    sched_wakeup_new: "sched_wakeup_new",
    signal_generate: "signal_generate",
    sock_recv_length: "sock_recv_length",
    sock_send_length: "sock_send_length",
    softirq_entry: "softirq_entry",
    softirq_exit: "softirq_exit",
    sys_enter: "sys_enter",
    sys_exit: "sys_exit",
    task_newtask: "task_newtask",
    tcp_receive_reset: "tcp_receive_reset",
    tcp_retransmit_skb: "tcp_retransmit_skb",
    tcp_retransmit_synack: "tcp_retransmit_synack",
    tcp_send_reset: "tcp_send_reset",
    udp_fail_queue_rcv_skb: "udp_fail_queue_rcv_skb",
    writeback_dirty_folio: "writeback_dirty_folio",
}
