#!/bin/bash
# Builds the fuzz targets and runs each for some seconds, from seeds of its own; a crash fails and leaves its input.
#
#   fuzz.sh [SECONDS] [TARGET…]
#
# The compiler's own instrumentation and libFuzzer, without the nightly compiler. --target keeps build scripts free of it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
triple=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-target}/fuzz
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$folder"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^path = "targets\/\(.*\)\.rs"/\1/p' fuzz/Cargo.toml)
failed=0
for target in "${targets[@]}"; do
    corpus=$folder/corpus/$target
    mkdir -p "$corpus"
    # What the tests have of the kind is a better start than nothing.
    case $target in
        image) seeds=$(find tests/fixtures -name '*.png' -o -name '*.jpg' -o -name '*.webp' -o -name '*.bmp' -o -name '*.gif' | head -40) ;;
        audio) seeds=$(find tests/fixtures -name '*.wav' -o -name '*.flac' -o -name '*.ogg' -o -name '*.mp3' | head -40) ;;
        *) seeds=$(find "fuzz/seeds/$target" -type f 2>/dev/null || true) ;;
    esac
    for seed in $seeds; do cp -n "$seed" "$corpus/" 2>/dev/null || true; done
    echo "== $target: $seconds s"
    if ! "$folder/$triple/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$folder/crash-$target-" "$corpus" 2>"$folder/$target.log"; then
        tail -40 "$folder/$target.log"
        failed=1
    else
        grep -E "number_of_executed_units|peak_rss" "$folder/$target.log"
    fi
done
exit "$failed"
