#!/bin/sh
# Runs the test suites that other crates publish with their sources under chaos: each crate of the list is copied from
# cargo's registry, at the version of Cargo.lock, with this package linked into its tests.
#
#     tests/chaos_crates/upstream.sh              all of the list
#     tests/chaos_crates/upstream.sh bytes rayon  these
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$here/target/upstream
[ $# -gt 0 ] || set -- bytes hashbrown indexmap serde_json regex-syntax aho-corasick rayon crossbeam-queue \
    crossbeam-deque crossbeam-epoch crossbeam-channel
export CARGO_TARGET_DIR="$work/target"
# Each test program says, and asserts, what the arena really served of it.
export STEPALLOC_CHAOS_SHARE=1
cargo fetch -q --manifest-path "$here/Cargo.toml"
failed=
for crate; do
    manifest=$(cargo metadata -q --format-version 1 --manifest-path "$here/Cargo.toml" |
        grep -o "\"manifest_path\":\"[^\"]*/$crate-[0-9][^\"/]*/Cargo.toml\"" | head -1 | cut -d'"' -f4)
    [ -n "$manifest" ] || { echo "$crate: not in Cargo.lock"; failed="$failed $crate"; continue; }
    copy=$work/$crate
    rm -rf "$copy"
    mkdir -p "$work"
    cp -r "$(dirname "$manifest")" "$copy"
    chmod -R u+w "$copy"
    rm -f "$copy/Cargo.lock"
    printf '\n[dev-dependencies.chaos_crates]\npath = "%s"\n\n[workspace]\n' "$here" >> "$copy/Cargo.toml"
    # At the end, because attributes and docs come first. Tests with an allocator of their own keep it.
    for root in "$copy"/src/lib.rs "$copy"/tests/*.rs "$copy"/tests/*/main.rs; do
        if [ -f "$root" ] && ! grep -q global_allocator "$root"; then
            printf '\n#[cfg(test)]\n#[allow(unused_extern_crates)]\nextern crate chaos_crates as _;\n' >> "$root"
        fi
    done
    echo "== $crate"
    if ! cargo test -q --release --manifest-path "$copy/Cargo.toml" --lib --tests 2> "$copy/stderr.txt" > "$copy/out.txt"; then
        failed="$failed $crate"
        grep -h 'panicked\|shadow:\|chaos: 0x\|stepalloc:\|^error' "$copy/stderr.txt" "$copy/out.txt" | head -20
    fi
    grep -h 'chaos: the arena served' "$copy/stderr.txt" | awk '{ served += $5; all += $7 } END {
        printf "the arena served %.1f %% of %d requests sampled\n", 100 * served / (all ? all : 1), all
        exit served < 0.9 * all || all == 0 }' || failed="$failed $crate"
    grep -h '^test result' "$copy/out.txt" | awk '{ passed += $4; bad += $6 } END { print passed " passed, " bad " failed" }'
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
