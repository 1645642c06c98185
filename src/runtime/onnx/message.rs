//! Makes ONNX Runtime's error texts fit for a client: no paths, no source lines, bounded length.

/// Longest text passed on, in characters.
const LONGEST: usize = 400;

/// The readable part of one of ONNX Runtime's messages.
pub(super) fn clean(text: &str) -> String {
    // Everything up to a source location is the library's own bookkeeping: "…Status Message: /src/gather.cc:12 Func(...)".
    let words: Vec<&str> = text.split_whitespace().collect();
    let after_location = words.iter().rposition(|word| is_source_location(word)).map_or(0, |index| index + 1);
    let mut kept: Vec<String> = Vec::new();
    for word in words.get(after_location..).unwrap_or_default() {
        kept.push(hide_path(word));
    }
    let mut cleaned = skip_signature(&kept.join(" ")).to_owned();
    if cleaned.is_empty() {
        "the graph failed".clone_into(&mut cleaned);
    }
    if cleaned.chars().count() > LONGEST {
        cleaned = cleaned.chars().take(LONGEST).collect::<String>() + "…";
    }
    // Control characters have no place in a log line or an answer.
    cleaned.replace(|c: char| c.is_control(), " ")
}

/// Whether a message says that a device has no memory left. ONNX Runtime has no code for it: its arena, CUDA and cuDNN each say
/// it in words of their own.
pub(super) fn is_out_of_memory(text: &str) -> bool {
    let lower = text.to_lowercase();
    [
        "out of memory",
        "failed to allocate memory for requested buffer",
        "available memory of",
        "cublas_status_alloc_failed",
        "cudnn_status_alloc_failed",
        "cudnn_status_internal_error_host_allocation_failed",
        "cudnn_status_internal_error_device_allocation_failed",
        "std::bad_alloc",
    ]
    .iter()
    .any(|part| lower.contains(part))
}

/// Whether it says that an arena's own bound was met.
pub(super) fn is_over_bound(text: &str) -> bool {
    text.to_lowercase().contains("available memory of")
}

/// Whether a message is of a GPU or one of its libraries, and not of the graph's input.
pub(super) fn is_device_fault(text: &str) -> bool {
    ["CUDA failure ", "CUDA error", "CUBLAS failure ", "CUDNN failure ", "CUFFT failure "]
        .iter()
        .any(|part| text.contains(part))
}

/// `/onnxruntime_src/.../gather.cc:123` and the like.
fn is_source_location(word: &str) -> bool {
    [".cc:", ".h:", ".cpp:", ".cu:", ".cuh:", ".inc:"].iter().any(|mark| word.contains(mark))
}

/// After a source location comes the C++ function: `void ns::F(args) [with T = float] the condition was false. text`.
fn skip_signature(text: &str) -> &str {
    let mut rest = text;
    if let Some((before, after)) = rest.split_once("[with ")
        && before.contains("::")
        && let Some((_, after)) = after.split_once("] ")
    {
        rest = after;
    }
    if rest.contains("::")
        && let Some(close) = rest.find(") const ").map(|at| at + 8).or_else(|| rest.find(") ").map(|at| at + 2))
        && rest.get(..close).is_some_and(|before| before.contains("::"))
        && let Some(after) = rest.get(close..)
        && !after.trim().is_empty()
    {
        rest = after;
    }
    rest.trim()
}

fn hide_path(word: &str) -> String {
    let bare = word.trim_matches(|c: char| "\"'()[],;:".contains(c));
    let is_path = bare.starts_with('/') && bare.get(1..).is_some_and(|rest| rest.contains('/'));
    if is_path { word.replace(bare, "(path)") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(clean(text), expected);
    }

    #[test]
    fn paths_and_source_lines_are_removed() {
        check(
            "Non-zero status code returned while running Gather node. Name:'' Status Message: \
             /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/gather.cc:10 indices element out of data bounds, idx=7",
            "indices element out of data bounds, idx=7",
        );
        check(
            "/src/include/op_kernel_context.h:42 const T* onnxruntime::OpKernelContext::Input(int) const \
             [with T = onnxruntime::Tensor] Missing Input: x",
            "Missing Input: x",
        );
        check("Load model from /var/lib/models/a/1/model.onnx failed: bad", "Load model from (path) failed: bad");
        check("Invalid input name: nope", "Invalid input name: nope");
        check("", "the graph failed");
    }

    #[test]
    fn want_of_memory_is_told_from_other_faults() {
        for text in [
            "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) \
             Failed to allocate memory for requested buffer of size 4194304",
            "bfc_arena.cc:359 Available memory of 1024 is smaller than requested bytes of 4096",
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
            "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "Non-zero status code returned while running Tile node. Status Message: std::bad_alloc",
        ] {
            assert!(is_out_of_memory(text), "{text}");
        }
        for text in [
            "indices element out of data bounds, idx=7",
            "CUDA failure 700: an illegal memory access was encountered",
            "",
        ] {
            assert!(!is_out_of_memory(text), "{text}");
            assert_eq!(is_device_fault(text), text.contains("illegal memory access"), "{text}");
        }
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(clean(&"x".repeat(100_000)).chars().count(), LONGEST + 1);
    }
}
