//! `vm-bench` works; how fast anything is does not matter here.

use crate::prepared;
use std::process::Command;

#[test]
fn the_benchmark_runs_to_its_end() {
    if prepared().is_none() {
        return;
    }
    let mut bench = Command::new(env!("CARGO_BIN_EXE_vm-bench"));
    let output = bench.args(["--quick", "--only", "count,guest"]).output().unwrap();
    let (table, said) = (output.stdout, output.stderr);
    let (table, said) = (String::from_utf8_lossy(&table), String::from_utf8_lossy(&said));
    assert!(output.status.success(), "{}\n{said}{table}", output.status);
    for row in ["vm_read_4k_qd128_vs_fio", "instructions_read_4k_qd32", "syscalls_per_io_vm"] {
        assert!(table.contains(row), "no {row} in\n{table}");
    }
}

#[test]
#[ignore = "needs perftest and libibverbs: `make test-rdma` runs it"]
fn the_benchmark_of_rdma_runs_to_its_end() {
    if prepared().is_none() {
        return;
    }
    let mut bench = Command::new(env!("CARGO_BIN_EXE_vm-bench"));
    let output = bench.args(["--quick", "--only", "rdma"]).output().unwrap();
    let (table, said) = (output.stdout, output.stderr);
    let (table, said) = (String::from_utf8_lossy(&table), String::from_utf8_lossy(&said));
    assert!(output.status.success(), "{}\n{said}{table}", output.status);
    assert!(table.contains("vm_rdma_retrieve_1m_vs_ib_write_bw"), "{table}");
}
