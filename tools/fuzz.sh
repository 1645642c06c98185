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

# What the tests have of the kind is a better start than nothing.
seeds() {
    case $1 in
        image) find tests/fixtures \( -name '*.png' -o -name '*.jpg' -o -name '*.webp' -o -name '*.bmp' -o -name '*.gif' \) ;;
        audio) find tests/fixtures \( -name '*.wav' -o -name '*.flac' -o -name '*.ogg' -o -name '*.mp3' \) ;;
        rewrite) find tests/fixtures/store -type f -name '*.onnx' -size -64k ;;
        *) [ ! -d "fuzz/seeds/$1" ] || find "fuzz/seeds/$1" -type f ;;
    esac | sed -n 1,40p
}

run() {
    local target=$1 corpus=$folder/corpus/$1
    mkdir -p "$corpus"
    seeds "$target" | xargs -r -I{} cp -n {} "$corpus/"
    if "$folder/$triple/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$folder/crash-$target-" "$corpus" 2>"$folder/$target.log"; then
        echo "$target: $seconds s without a crash, $(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/$target.log") runs," \
            "$(sed -n 's/^stat::peak_rss_mb: *//p' "$folder/$target.log") MB"
    else
        tail -40 "$folder/$target.log"
        echo "$target: FAILED; the input is beside $folder/$target.log"
        return 1
    fi
}
export -f run seeds
export folder triple seconds
# As many side by side as there are cores; xargs fails where one does.
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'run {}'
