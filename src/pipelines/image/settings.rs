//! How a picture becomes a tensor: `preprocessor_config.json`, the manifest's overrides and the graph's shape, in one.
//!
//! Invariants: every size is 1 to [`MAX_SIDE`]; mean and std have one value for each channel and std has no zero. What
//! a file leaves out has the default of its image processor in transformers. Knows no file system.

use super::input::ImageInput;
use crate::pipelines::{ImageOverrides, PipelineError};
use serde_json::Value;

/// Longer sides than any vision model takes.
const MAX_SIDE: u32 = 16_384;
const FILE: &str = "preprocessor_config.json";
/// Sides of YOLOS's pictures are multiples of it, whatever its patches are.
const YOLOS_STEP: u32 = 16;
const STANDARD: [f64; 3] = [0.5; 3];
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub height: u32,
    pub width: u32,
}

/// Filters by Pillow's names; all but `Nearest` widen with the reduction (antialiasing).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

/// The order of the channels in the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelOrder {
    Rgb,
    Bgr,
    Grey,
}

/// How a side becomes a multiple of so many pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Down(u32),
    Up(u32),
}

/// Resize, then centre crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Geometry {
    /// No resize.
    Keep {
        crop: Option<Size>,
    },
    Exact {
        size: Size,
        crop: Option<Size>,
    },
    /// The short side becomes `edge`, the long one at most `longest`.
    ShortestEdge {
        edge: u32,
        longest: Option<u32>,
        crop: Option<Size>,
    },
    /// As [`Geometry::ShortestEdge`], then both sides to whole multiples.
    Stepped {
        edge: u32,
        longest: Option<u32>,
        step: Step,
    },
    /// The picture's own size, to whole multiples.
    Own {
        step: Step,
    },
    /// As large as fits into `size`, and nothing around it.
    Within {
        size: Size,
    },
    /// About `size`, the picture's shape kept but for rounding: sides are multiples of `multiple`.
    Multiple {
        size: Size,
        multiple: u32,
    },
    /// As large as fits into `size`, at its top left, the rest `pad_value`.
    Letterbox {
        size: Size,
        pad_value: u8,
    },
}

/// After normalisation: zeros to the right and below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pad {
    None,
    /// To the largest item of the request.
    Largest,
    To(Size),
}

/// `((u8 · factor + offset) − mean) / std`, by channel in the order of the tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalize {
    pub factor: f64,
    pub offset: f32,
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// EfficientNet's `include_top` divides by std once more.
    pub divide_twice: bool,
}

/// All that is done to a decoded picture.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSettings {
    pub geometry: Geometry,
    pub resample: Resample,
    pub pad: Pad,
    pub channel_order: ChannelOrder,
    pub normalize: Normalize,
}

impl Step {
    /// A multiple, and at least one of it.
    pub(crate) fn apply(self, side: u64) -> u64 {
        match self {
            Step::Down(multiple) => (side / u64::from(multiple.max(1))).max(1) * u64::from(multiple.max(1)),
            Step::Up(multiple) => side.div_ceil(multiple.max(1).into()).max(1) * u64::from(multiple.max(1)),
        }
    }
}

impl Normalize {
    /// The tensor's value for one byte of a picture.
    pub fn apply(&self, channel: usize, value: u8) -> f32 {
        // The reference multiplies in double, rounds, and goes on in single precision.
        let scaled = (f64::from(value) * self.factor) as f32 + self.offset;
        let mean = self.mean.get(channel).copied().unwrap_or(0.0);
        let std = self.std.get(channel).copied().unwrap_or(1.0);
        let normal = (scaled - mean) / std;
        if self.divide_twice { normal / std } else { normal }
    }
}

/// What one of transformers' image processors does where its file says nothing.
struct Defaults {
    size: Option<SizeForm>,
    /// Whether an integer size is both sides; else it is the shortest edge.
    square: bool,
    resample: Resample,
    center_crop: bool,
    crop_size: Option<u32>,
    crop_pct: Option<f64>,
    normalize: bool,
    mean: [f64; 3],
    std: [f64; 3],
    flip: bool,
    /// Whether pictures are padded to the largest of a batch.
    pad: bool,
    rule: Rule,
}

/// Processors whose resize has a rule of its own.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Plain,
    ConvNext,
    Levit,
    PoolFormer,
    EfficientNet,
    Dpt,
    Glpn,
    Yolos,
    /// Sides are multiples of the file's `size_divisor`.
    Divisor,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum SizeForm {
    Exact(Size),
    Shortest { edge: u32, longest: Option<u32> },
    Within(Size),
}

impl Defaults {
    fn of(processor: &str) -> Defaults {
        use Resample::{Bicubic, Bilinear, Nearest};
        let exact = |side| Some(SizeForm::Exact(Size { height: side, width: side }));
        let shortest = |edge| Some(SizeForm::Shortest { edge, longest: None });
        let base = Defaults {
            size: exact(224),
            square: true,
            resample: Bilinear,
            center_crop: false,
            crop_size: None,
            crop_pct: None,
            normalize: true,
            mean: STANDARD,
            std: STANDARD,
            flip: false,
            pad: false,
            rule: Rule::Plain,
        };
        let imagenet = Defaults { mean: IMAGENET_MEAN, std: IMAGENET_STD, ..base };
        let clip = Defaults { mean: CLIP_MEAN, std: CLIP_STD, resample: Bicubic, ..base };
        let detr = Defaults {
            size: Some(SizeForm::Shortest { edge: 800, longest: Some(1333) }),
            square: false,
            pad: true,
            ..imagenet
        };
        match processor {
            "vit" => base,
            "deit" | "beit" => {
                Defaults { size: exact(256), resample: Bicubic, center_crop: true, crop_size: Some(224), ..base }
            }
            "convnext" => Defaults {
                size: shortest(384),
                square: false,
                crop_pct: Some(224.0 / 256.0),
                rule: Rule::ConvNext,
                ..base
            },
            "mobilenetv1" | "mobilenetv2" => {
                Defaults { size: shortest(256), square: false, center_crop: true, crop_size: Some(224), ..base }
            }
            "mobilevit" => Defaults {
                size: shortest(224),
                square: false,
                center_crop: true,
                crop_size: Some(256),
                normalize: false,
                flip: true,
                ..base
            },
            "efficientnet" => {
                Defaults { size: exact(346), resample: Nearest, crop_size: Some(289), rule: Rule::EfficientNet, ..base }
            }
            "levit" => Defaults {
                size: shortest(224),
                square: false,
                resample: Bicubic,
                center_crop: true,
                crop_size: Some(224),
                rule: Rule::Levit,
                ..imagenet
            },
            "poolformer" => Defaults {
                size: shortest(224),
                square: false,
                resample: Bicubic,
                center_crop: true,
                crop_size: Some(224),
                crop_pct: Some(0.9),
                rule: Rule::PoolFormer,
                ..imagenet
            },
            "efficientformer" => Defaults { resample: Bicubic, center_crop: true, crop_size: Some(224), ..imagenet },
            "detr" | "conditionaldetr" | "deformabledetr" | "deta" | "groundingdino" => detr,
            "yolos" => Defaults { rule: Rule::Yolos, ..detr },
            "maskformer" | "mask2former" | "oneformer" => Defaults { rule: Rule::Divisor, ..detr },
            "textnet" => Defaults { size: shortest(640), square: false, rule: Rule::Divisor, ..imagenet },
            // Its size is a divisor.
            "glpn" => Defaults { size: exact(32), normalize: false, rule: Rule::Glpn, ..base },
            "rtdetr" => Defaults { size: exact(640), normalize: false, ..imagenet },
            "dpt" => Defaults { size: exact(384), resample: Bicubic, rule: Rule::Dpt, ..base },
            "segformer" => Defaults { size: exact(512), ..imagenet },
            "pvt" | "dinov3vit" => imagenet,
            "clip" | "chineseclip" | "bit" | "vithybrid" => {
                Defaults { size: shortest(224), square: false, center_crop: true, crop_size: Some(224), ..clip }
            }
            "blip" => Defaults { size: exact(384), ..clip },
            "siglip" => Defaults { resample: Bicubic, ..base },
            // Unknown: what the file says is done, and nothing else.
            _ => Defaults { size: None, ..base },
        }
    }
}

impl ImageSettings {
    /// Settings of `file` (the parsed `preprocessor_config.json`), with `overrides` in place of what it says.
    ///
    /// Without a file the picture is resized to the graph's declared height and width, bilinear, and scaled to 0…1.
    ///
    /// # Errors
    /// Where a key has a value that cannot be meant, the sizes do not agree with the graph, or no size is known.
    pub fn new(
        file: Option<&Value>,
        overrides: Option<&ImageOverrides>,
        input: &ImageInput,
    ) -> Result<ImageSettings, PipelineError> {
        let settings = match file {
            Some(file) => Some(from_file(file, input)?),
            None => None,
        };
        let settings = match overrides {
            Some(overrides) => Some(apply(settings, overrides, input)?),
            None => settings,
        };
        let settings = match settings {
            Some(settings) => settings,
            None => bare(graph_size(input).ok_or_else(no_size)?, input),
        };
        settings.check_against(input)?;
        Ok(settings)
    }

    /// Resize to `height`×`width`, bilinear, to 0…1.
    #[cfg(test)]
    pub(crate) fn exact(height: u32, width: u32) -> ImageSettings {
        let normalize = Normalize { factor: 1.0 / 255.0, offset: 0.0, mean: vec![], std: vec![], divide_twice: false };
        let geometry = Geometry::Exact { size: Size { height, width }, crop: None };
        ImageSettings {
            geometry,
            resample: Resample::Bilinear,
            pad: Pad::None,
            channel_order: ChannelOrder::Rgb,
            normalize,
        }
    }

    /// Height and width of the tensor; `None` where they follow the picture.
    pub fn output_size(&self) -> Option<Size> {
        if let Pad::To(size) = self.pad {
            return Some(size);
        }
        match self.geometry {
            Geometry::Keep { crop } | Geometry::ShortestEdge { crop, .. } => crop,
            Geometry::Multiple { .. } | Geometry::Stepped { .. } | Geometry::Own { .. } | Geometry::Within { .. } => {
                None
            }
            Geometry::Exact { size, crop } => Some(crop.unwrap_or(size)),
            Geometry::Letterbox { size, .. } => Some(size),
        }
    }

    fn check_against(&self, input: &ImageInput) -> Result<(), PipelineError> {
        let Some(size) = self.output_size() else { return Ok(()) };
        let differs = |declared: Option<usize>, side: u32| declared.is_some_and(|declared| declared != side as usize);
        if differs(input.height, size.height) || differs(input.width, size.width) {
            let side = |side: Option<usize>| side.map_or("any".to_owned(), |side| side.to_string());
            return Err(setup(format!(
                "preprocessing gives pictures of {}×{} (width×height), but input {:?} takes {}×{}; correct {FILE} or [pipeline.image] in model.toml",
                size.width,
                size.height,
                input.name,
                side(input.width),
                side(input.height)
            )));
        }
        Ok(())
    }
}

fn from_file(file: &Value, input: &ImageInput) -> Result<ImageSettings, PipelineError> {
    if !file.is_object() {
        return Err(setup(format!("{FILE}: expected an object")));
    }
    let processor = processor_name(file);
    let defaults = Defaults::of(&processor);
    let size = size_form(file, "size", defaults.square)?.or(defaults.size);
    let size = match (size, file.get("max_size").and_then(side)) {
        // Older files of DETR name the bound of the long side on its own.
        (Some(SizeForm::Shortest { edge, longest: None }), Some(most)) if most > edge => {
            Some(SizeForm::Shortest { edge, longest: Some(most) })
        }
        // One number alone has the usual bound.
        (Some(SizeForm::Shortest { edge, longest: None }), None) if defaults.pad => {
            Some(SizeForm::Shortest { edge, longest: Some(1333).filter(|most| *most > edge) })
        }
        (size, _) => size,
    };
    let crop_pct = number(file, "crop_pct")?.or(defaults.crop_pct);
    let crop_size = match size_form(file, "crop_size", true)? {
        Some(SizeForm::Exact(size)) => Some(size),
        Some(SizeForm::Shortest { edge, .. }) => Some(Size { height: edge, width: edge }),
        Some(SizeForm::Within(_)) => return Err(setup(format!("{FILE}: crop_size: expected height and width"))),
        None => defaults.crop_size.map(|side| Size { height: side, width: side }),
    };
    let known = defaults.size.is_some();
    let do_resize = flag(file, "do_resize")?.unwrap_or(size.is_some());
    let do_crop =
        flag(file, "do_center_crop")?.unwrap_or(if known { defaults.center_crop } else { crop_size.is_some() });
    let crop = match (do_crop, crop_size) {
        (true, None) => return Err(setup(format!("{FILE}: do_center_crop needs crop_size"))),
        (true, crop) => crop,
        (false, _) => None,
    };
    let geometry = match (do_resize, size) {
        (false, _) => Geometry::Keep { crop },
        (true, None) => match graph_size(input) {
            Some(size) => Geometry::Exact { size, crop },
            None => return Err(no_size()),
        },
        (true, Some(SizeForm::Exact(size))) if defaults.rule == Rule::Dpt => dpt_rule(file, size)?,
        (true, _) if defaults.rule == Rule::Glpn => Geometry::Own { step: Step::Down(divisor(file)?) },
        (true, Some(size)) if defaults.rule == Rule::Divisor && crop.is_none() => {
            stepped(size, Step::Up(divisor(file)?))
        }
        (true, Some(size)) if defaults.rule == Rule::Yolos => stepped(size, Step::Down(YOLOS_STEP)),
        (true, Some(size)) => resize_rule(defaults.rule, size, crop_pct, crop)?,
    };
    let resample = match file.get("resample") {
        None | Some(Value::Null) => defaults.resample,
        Some(value) => pil_filter(value)?,
    };
    let flip = flag(file, "do_flip_channel_order")?.unwrap_or(defaults.flip);
    let channel_order = match (input.channels, flip) {
        (1, _) => ChannelOrder::Grey,
        (_, true) => ChannelOrder::Bgr,
        (_, false) => ChannelOrder::Rgb,
    };
    Ok(ImageSettings {
        geometry,
        resample,
        pad: pad(file, defaults.pad)?,
        channel_order,
        normalize: normalize(file, &defaults, input)?,
    })
}

/// `ViT` of `ViTImageProcessorFast` or `ViTFeatureExtractor`, in lower case.
fn processor_name(file: &Value) -> String {
    let name = ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| file.get(key)?.as_str());
    let name = name.unwrap_or_default();
    let name = name.strip_suffix("Fast").or_else(|| name.strip_suffix("Pil")).unwrap_or(name);
    let name = name.strip_suffix("ImageProcessor").or_else(|| name.strip_suffix("FeatureExtractor")).unwrap_or(name);
    name.to_ascii_lowercase()
}

fn resize_rule(
    rule: Rule,
    size: SizeForm,
    crop_pct: Option<f64>,
    crop: Option<Size>,
) -> Result<Geometry, PipelineError> {
    let crop_pct = match crop_pct {
        Some(crop_pct) if !(0.01..=1.0).contains(&crop_pct) => {
            return Err(setup(format!("{FILE}: crop_pct: expected 0.01 to 1, got {crop_pct}")));
        }
        crop_pct => crop_pct,
    };
    // At most MAX_SIDE / 0.01, far inside u32.
    let enlarged = |edge: u32| crop_pct.map_or(edge, |crop_pct| (f64::from(edge) / crop_pct) as u32);
    Ok(match (rule, size) {
        (Rule::ConvNext, SizeForm::Shortest { edge, .. }) => {
            let square = Size { height: edge, width: edge };
            if edge < 384 {
                Geometry::ShortestEdge { edge: enlarged(edge), longest: None, crop: Some(square) }
            } else {
                Geometry::Exact { size: square, crop: None }
            }
        }
        (Rule::Levit, SizeForm::Shortest { edge, .. }) => {
            Geometry::ShortestEdge { edge: (256.0 / 224.0 * f64::from(edge)) as u32, longest: None, crop }
        }
        (Rule::PoolFormer, SizeForm::Shortest { edge, .. }) => {
            Geometry::ShortestEdge { edge: enlarged(edge), longest: None, crop }
        }
        (Rule::PoolFormer, SizeForm::Exact(size)) if crop_pct.is_some() => {
            let (height, width) = (enlarged(size.height), enlarged(size.width));
            if height == width {
                Geometry::ShortestEdge { edge: height, longest: None, crop }
            } else {
                Geometry::Exact { size: Size { height, width }, crop }
            }
        }
        (_, SizeForm::Exact(size)) => Geometry::Exact { size, crop },
        (_, SizeForm::Within(size)) => Geometry::Within { size },
        (_, SizeForm::Shortest { edge, longest }) => Geometry::ShortestEdge { edge, longest, crop },
    })
}

/// `size_divisor`, 32 where the file leaves it out.
fn divisor(file: &Value) -> Result<u32, PipelineError> {
    match file.get("size_divisor") {
        None | Some(Value::Null) => Ok(32),
        // What MaskFormer's file has for "any size".
        Some(value) if value.as_u64() == Some(0) => Ok(1),
        Some(value) => side(value)
            .ok_or_else(|| setup(format!("{FILE}: size_divisor: expected an integer of 1 to {MAX_SIDE}, got {value}"))),
    }
}

/// A resize whose shortest edge is given, to whole multiples. Sizes that are given whole are taken as they are by YOLOS.
fn stepped(size: SizeForm, step: Step) -> Geometry {
    match (size, step) {
        (SizeForm::Shortest { edge, longest }, step) => Geometry::Stepped { edge, longest, step },
        (SizeForm::Exact(size), Step::Up(_)) => {
            let side = |side: u32| step.apply(side.into()) as u32;
            Geometry::Exact { size: Size { height: side(size.height), width: side(size.width) }, crop: None }
        }
        (SizeForm::Exact(size), Step::Down(_)) => Geometry::Exact { size, crop: None },
        (SizeForm::Within(size), _) => Geometry::Within { size },
    }
}

/// DPT's resize: to the size itself, or keeping the picture's shape.
fn dpt_rule(file: &Value, size: Size) -> Result<Geometry, PipelineError> {
    let multiple = match file.get("ensure_multiple_of") {
        None | Some(Value::Null) => 1,
        Some(value) => side(value).ok_or_else(|| {
            setup(format!("{FILE}: ensure_multiple_of: expected an integer of 1 to {MAX_SIDE}, got {value}"))
        })?,
    };
    if flag(file, "keep_aspect_ratio")? == Some(true) {
        return Ok(Geometry::Multiple { size, multiple });
    }
    let rounded = |side: u32| {
        let multiple = f64::from(multiple);
        ((f64::from(side) / multiple).round_ties_even() * multiple).max(multiple) as u32
    };
    let size = Size { height: rounded(size.height), width: rounded(size.width) };
    Ok(Geometry::Exact { size, crop: None })
}

fn normalize(file: &Value, defaults: &Defaults, input: &ImageInput) -> Result<Normalize, PipelineError> {
    let known = defaults.size.is_some();
    let do_rescale = flag(file, "do_rescale")?.unwrap_or(true);
    let factor = number(file, "rescale_factor")?.unwrap_or(1.0 / 255.0);
    let offset = do_rescale && flag(file, "rescale_offset")?.unwrap_or(false);
    let (mean, std) = (values(file, "image_mean")?, values(file, "image_std")?);
    let do_normalize = flag(file, "do_normalize")?.unwrap_or(if known { defaults.normalize } else { mean.is_some() });
    let include_top = defaults.rule == Rule::EfficientNet && flag(file, "include_top")?.unwrap_or(true);
    let std = std.unwrap_or(defaults.std.to_vec());
    let (mean, std) = match (do_normalize, include_top) {
        (true, _) => (mean.unwrap_or(defaults.mean.to_vec()), std),
        // What include_top divides by, it divides by alone.
        (false, true) => (vec![0.0], std),
        (false, false) => (vec![0.0], vec![1.0]),
    };
    Ok(Normalize {
        factor: if do_rescale { factor } else { 1.0 },
        offset: if offset { -1.0 } else { 0.0 },
        mean: by_channel(&mean, input.channels, &format!("{FILE}: image_mean"))?,
        std: nonzero(by_channel(&std, input.channels, &format!("{FILE}: image_std"))?, &format!("{FILE}: image_std"))?,
        divide_twice: include_top && do_normalize,
    })
}

fn pad(file: &Value, default: bool) -> Result<Pad, PipelineError> {
    if !flag(file, "do_pad")?.unwrap_or(default) {
        return Ok(Pad::None);
    }
    Ok(match size_form(file, "pad_size", true)? {
        Some(SizeForm::Exact(size)) => Pad::To(size),
        Some(SizeForm::Shortest { .. } | SizeForm::Within(_)) => {
            return Err(setup(format!("{FILE}: pad_size: expected height and width")));
        }
        None => Pad::Largest,
    })
}

fn bare(size: Size, input: &ImageInput) -> ImageSettings {
    ImageSettings {
        geometry: Geometry::Exact { size, crop: None },
        resample: Resample::Bilinear,
        pad: Pad::None,
        channel_order: if input.channels == 1 { ChannelOrder::Grey } else { ChannelOrder::Rgb },
        normalize: Normalize {
            factor: 1.0 / 255.0,
            offset: 0.0,
            mean: vec![0.0; input.channels],
            std: vec![1.0; input.channels],
            divide_twice: false,
        },
    }
}

/// `base` with what the manifest says in its place. A size or a way to resize replaces the file's crop too.
fn apply(
    base: Option<ImageSettings>,
    overrides: &ImageOverrides,
    input: &ImageInput,
) -> Result<ImageSettings, PipelineError> {
    let field = |name: &str| format!("[pipeline.image] {name}");
    let size = overrides.size.map(|size| checked(size.height, size.width, &field("size"))).transpose()?;
    let crop = overrides.crop_size.map(|size| checked(size.height, size.width, &field("crop_size"))).transpose()?;
    let base_size = base.as_ref().and_then(|base| match base.geometry {
        Geometry::Exact { size, .. } | Geometry::Multiple { size, .. } | Geometry::Letterbox { size, .. } => Some(size),
        Geometry::Within { size } => Some(size),
        Geometry::ShortestEdge { edge, .. } | Geometry::Stepped { edge, .. } => {
            Some(Size { height: edge, width: edge })
        }
        Geometry::Keep { .. } | Geometry::Own { .. } => None,
    });
    let target = || size.or(graph_size(input)).or(base_size).ok_or_else(no_size);
    let geometry = match overrides.resize.as_deref() {
        Some("exact") => Geometry::Exact { size: size.or(base_size).map_or_else(target, Ok)?, crop },
        Some("shortest_edge") => {
            let size = size.or(base_size).map_or_else(target, Ok)?;
            Geometry::ShortestEdge { edge: size.height.min(size.width), longest: None, crop }
        }
        Some("letterbox") if crop.is_some() => {
            return Err(setup(format!("{}: a letterbox is not cropped; leave it out", field("crop_size"))));
        }
        Some("letterbox") => Geometry::Letterbox { size: target()?, pad_value: overrides.pad_value.unwrap_or(114) },
        Some(other) => {
            return Err(setup(format!(
                "{}: expected \"exact\", \"shortest_edge\" or \"letterbox\", got {other:?}",
                field("resize")
            )));
        }
        None => match (size, &base) {
            (Some(size), _) => Geometry::Exact { size, crop },
            (None, Some(base)) => with_crop(base.geometry, crop),
            (None, None) => Geometry::Exact { size: target()?, crop },
        },
    };
    if overrides.pad_value.is_some() && !matches!(geometry, Geometry::Letterbox { .. }) {
        return Err(setup(format!("{}: only a letterbox is filled; add resize = \"letterbox\"", field("pad_value"))));
    }
    let reshaped = size.is_some() || overrides.resize.is_some();
    let mut settings = match base {
        Some(base) => base,
        None => bare(Size { height: 1, width: 1 }, input),
    };
    settings.geometry = geometry;
    if reshaped {
        settings.pad = Pad::None;
    }
    if let Some(name) = &overrides.resample {
        settings.resample = named_filter(name)?;
    }
    if let Some(order) = &overrides.channel_order {
        settings.channel_order = match (order.as_str(), input.channels) {
            ("RGB", 3) => ChannelOrder::Rgb,
            ("BGR", 3) => ChannelOrder::Bgr,
            ("L", 1) => ChannelOrder::Grey,
            (_, channels) => {
                let expected = if channels == 1 { "\"L\"" } else { "\"RGB\" or \"BGR\"" };
                return Err(setup(format!(
                    "{}: input {:?} has {channels} channels: expected {expected}, got {order:?}",
                    field("channel_order"),
                    input.name
                )));
            }
        };
    }
    if let Some(factor) = overrides.rescale_factor {
        settings.normalize.factor = finite(factor, &field("rescale_factor"))?;
        settings.normalize.offset = 0.0;
    }
    if let Some(mean) = &overrides.mean {
        settings.normalize.mean = by_channel(mean, input.channels, &field("mean"))?;
    }
    if let Some(std) = &overrides.std {
        settings.normalize.std = nonzero(by_channel(std, input.channels, &field("std"))?, &field("std"))?;
        settings.normalize.divide_twice = false;
    }
    Ok(settings)
}

fn with_crop(geometry: Geometry, crop: Option<Size>) -> Geometry {
    let Some(crop) = crop else { return geometry };
    match geometry {
        Geometry::Keep { .. } => Geometry::Keep { crop: Some(crop) },
        Geometry::Exact { size, .. } => Geometry::Exact { size, crop: Some(crop) },
        Geometry::ShortestEdge { edge, longest, .. } => Geometry::ShortestEdge { edge, longest, crop: Some(crop) },
        Geometry::Multiple { .. }
        | Geometry::Letterbox { .. }
        | Geometry::Stepped { .. }
        | Geometry::Own { .. }
        | Geometry::Within { .. } => geometry,
    }
}

fn graph_size(input: &ImageInput) -> Option<Size> {
    let side = |side: Option<usize>| u32::try_from(side?).ok().filter(|side| *side <= MAX_SIDE);
    Some(Size { height: side(input.height)?, width: side(input.width)? })
}

fn no_size() -> PipelineError {
    setup(format!("the size of the pictures is unknown: add {FILE} or size in [pipeline.image] of model.toml"))
}

/// Every form of a size: an integer, `[height, width]`, `{height, width}` or `{shortest_edge, longest_edge}`.
fn size_form(file: &Value, key: &str, square: bool) -> Result<Option<SizeForm>, PipelineError> {
    let wrong = |value: &Value| {
        setup(format!(
            "{FILE}: {key}: expected a side, {{height, width}} or {{shortest_edge}}, each 1 to {MAX_SIDE}, got {value}"
        ))
    };
    let Some(value) = file.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let side = |value: &Value| side(value).ok_or_else(|| wrong(value));
    let form = match value {
        Value::Number(_) if square => SizeForm::Exact(Size { height: side(value)?, width: side(value)? }),
        Value::Number(_) => SizeForm::Shortest { edge: side(value)?, longest: None },
        Value::Array(sides) => match sides.as_slice() {
            [height, width] => SizeForm::Exact(Size { height: side(height)?, width: side(width)? }),
            _ => return Err(wrong(value)),
        },
        Value::Object(sides) => match (sides.get("height"), sides.get("width"), sides.get("shortest_edge")) {
            (Some(height), Some(width), _) => SizeForm::Exact(Size { height: side(height)?, width: side(width)? }),
            (_, _, Some(edge)) => {
                let edge = side(edge)?;
                let longest = sides.get("longest_edge").filter(|longest| !longest.is_null()).map(side).transpose()?;
                match longest {
                    Some(longest) if longest <= edge => return Err(wrong(value)),
                    longest => SizeForm::Shortest { edge, longest },
                }
            }
            _ => match (sides.get("max_height"), sides.get("max_width")) {
                (Some(height), Some(width)) => SizeForm::Within(Size { height: side(height)?, width: side(width)? }),
                _ => return Err(wrong(value)),
            },
        },
        Value::Null | Value::Bool(_) | Value::String(_) => return Err(wrong(value)),
    };
    Ok(Some(form))
}

fn side(value: &Value) -> Option<u32> {
    // Some files write 224.0.
    let side = value.as_f64().filter(|side| side.fract() == 0.0 && (1.0..=f64::from(MAX_SIDE)).contains(side))?;
    Some(side as u32)
}

fn checked(height: u32, width: u32, field: &str) -> Result<Size, PipelineError> {
    if (1..=MAX_SIDE).contains(&height) && (1..=MAX_SIDE).contains(&width) {
        return Ok(Size { height, width });
    }
    Err(setup(format!("{field}: expected sides of 1 to {MAX_SIDE}, got height {height} and width {width}")))
}

fn pil_filter(value: &Value) -> Result<Resample, PipelineError> {
    Ok(match value.as_u64() {
        Some(0) => Resample::Nearest,
        Some(1) => Resample::Lanczos,
        Some(2) => Resample::Bilinear,
        Some(3) => Resample::Bicubic,
        Some(4) => Resample::Box,
        Some(5) => Resample::Hamming,
        _ => match value.as_str() {
            Some(name) => return named_filter(name),
            None => {
                return Err(setup(format!("{FILE}: resample: expected one of Pillow's filters, 0 to 5, got {value}")));
            }
        },
    })
}

fn named_filter(name: &str) -> Result<Resample, PipelineError> {
    Ok(match name {
        "nearest" => Resample::Nearest,
        "lanczos" => Resample::Lanczos,
        "bilinear" => Resample::Bilinear,
        "bicubic" => Resample::Bicubic,
        "box" => Resample::Box,
        "hamming" => Resample::Hamming,
        _ => {
            return Err(setup(format!(
                "resample: expected nearest, bilinear, bicubic, lanczos, box or hamming, got {name:?}"
            )));
        }
    })
}

fn flag(file: &Value, key: &str) -> Result<Option<bool>, PipelineError> {
    match file.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(setup(format!("{FILE}: {key}: expected true or false, got {other}"))),
    }
}

fn number(file: &Value, key: &str) -> Result<Option<f64>, PipelineError> {
    match file.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(value) => Ok(Some(value)),
            None => Err(setup(format!("{FILE}: {key}: expected a number, got {value}"))),
        },
    }
}

/// A number or a list of numbers.
fn values(file: &Value, key: &str) -> Result<Option<Vec<f64>>, PipelineError> {
    let wrong = || setup(format!("{FILE}: {key}: expected a number or a list of numbers"));
    match file.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(values)) => {
            values.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>().map(Some).ok_or_else(wrong)
        }
        Some(value) => value.as_f64().map(|value| Some(vec![value])).ok_or_else(wrong),
    }
}

/// One value for each channel: from as many, from one, or from equal ones.
fn by_channel(values: &[f64], channels: usize, field: &str) -> Result<Vec<f32>, PipelineError> {
    for &value in values {
        finite(value, field)?;
    }
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => Ok(vec![*first as f32; channels]),
        values if values.len() == channels => Ok(values.iter().map(|&value| value as f32).collect()),
        values => {
            Err(setup(format!("{field}: expected {channels} values, one for each channel, got {}", values.len())))
        }
    }
}

fn finite(value: f64, field: &str) -> Result<f64, PipelineError> {
    if value.is_finite() && value.abs() <= 1e9 {
        return Ok(value);
    }
    Err(setup(format!("{field}: expected a finite number, got {value}")))
}

fn nonzero(values: Vec<f32>, field: &str) -> Result<Vec<f32>, PipelineError> {
    if values.iter().all(|&value| value != 0.0) {
        return Ok(values);
    }
    Err(setup(format!("{field}: expected numbers other than 0")))
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::spec;
    use super::*;
    use crate::tensor::DType;
    use serde_json::json;

    fn any_size() -> ImageInput {
        ImageInput::find(&[spec("pixel_values", DType::Fp32, &[-1, 3, -1, -1])]).unwrap()
    }

    fn size(height: u32, width: u32) -> Size {
        Size { height, width }
    }

    #[track_caller]
    fn check(file: Value, geometry: Geometry, resample: Resample) -> ImageSettings {
        let settings = ImageSettings::new(Some(&file), None, &any_size()).unwrap();
        assert_eq!((settings.geometry, settings.resample), (geometry, resample), "{file}");
        settings
    }

    #[track_caller]
    fn refused(file: Option<Value>, overrides: Option<&str>, input: &ImageInput, expected: &str) {
        let overrides = overrides.map(|text| toml::from_str(text).unwrap());
        let error = ImageSettings::new(file.as_ref(), overrides.as_ref(), input).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn every_form_of_a_size_is_read() {
        use Geometry::{Exact, Keep, ShortestEdge};
        use Resample::{Bicubic, Bilinear, Lanczos, Nearest};
        let exact = |h, w| Exact { size: size(h, w), crop: None };
        let vit = |value: Value| json!({"image_processor_type": "ViTImageProcessor", "size": value});
        check(vit(json!(96)), exact(96, 96), Bilinear);
        check(vit(json!([96, 80])), exact(96, 80), Bilinear);
        check(vit(json!({"height": 96, "width": 80.0})), exact(96, 80), Bilinear);
        check(vit(Value::Null), exact(224, 224), Bilinear);
        let longest = json!({"shortest_edge": 96, "longest_edge": 200});
        check(vit(longest), ShortestEdge { edge: 96, longest: Some(200), crop: None }, Bilinear);
        let clip =
            json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3});
        check(clip, ShortestEdge { edge: 224, longest: None, crop: Some(size(224, 224)) }, Bicubic);
        let deit = json!({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "resample": 1});
        check(deit, Exact { size: size(256, 256), crop: Some(size(224, 224)) }, Lanczos);
        let efficientnet = json!({"image_processor_type": "EfficientNetImageProcessorFast"});
        check(efficientnet, exact(346, 346), Nearest);
        check(json!({"do_resize": false, "crop_size": 32}), Keep { crop: Some(size(32, 32)) }, Bilinear);
        let unknown =
            json!({"image_processor_type": "NewImageProcessor", "size": 64, "do_center_crop": false, "crop_size": 32});
        check(unknown, exact(64, 64), Bilinear);
    }

    #[test]
    fn processors_with_rules_of_their_own_keep_them() {
        use Geometry::{Exact, ShortestEdge};
        let edge = |edge, crop| ShortestEdge { edge, longest: None, crop: Some(size(crop, crop)) };
        let convnext = |side: u32, pct: f64| json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": side}, "crop_pct": pct, "resample": 3});
        check(convnext(64, 0.875), edge(73, 64), Resample::Bicubic);
        check(convnext(224, 0.95), edge(235, 224), Resample::Bicubic);
        check(convnext(384, 0.95), Exact { size: size(384, 384), crop: None }, Resample::Bicubic);
        check(
            json!({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224}),
            edge(256, 224),
            Resample::Bilinear,
        );
        check(json!({"image_processor_type": "LevitImageProcessor"}), edge(256, 224), Resample::Bicubic);
        check(json!({"image_processor_type": "PoolFormerImageProcessor"}), edge(248, 224), Resample::Bicubic);
        let dpt = |more: Value| {
            let mut file = json!({"image_processor_type": "DPTImageProcessor", "size": {"height": 518, "width": 518}, "ensure_multiple_of": 14});
            file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            file
        };
        let multiple = Geometry::Multiple { size: size(518, 518), multiple: 14 };
        check(dpt(json!({"keep_aspect_ratio": true})), multiple, Resample::Bicubic);
        check(dpt(json!({"size": 500, "resample": 2})), Exact { size: size(504, 504), crop: None }, Resample::Bilinear);
        let detr = json!({"feature_extractor_type": "DetrFeatureExtractor", "size": 600, "max_size": 1000});
        check(detr, ShortestEdge { edge: 600, longest: Some(1000), crop: None }, Resample::Bilinear);
        let alone = json!({"feature_extractor_type": "DetrFeatureExtractor", "size": 600});
        let settings = check(alone, ShortestEdge { edge: 600, longest: Some(1333), crop: None }, Resample::Bilinear);
        assert_eq!(settings.pad, Pad::Largest);
        let within = json!({"image_processor_type": "DetrImageProcessor", "size": {"max_height": 60, "max_width": 80}});
        check(within, Geometry::Within { size: size(60, 80) }, Resample::Bilinear);
        let stepped = |edge, longest, step| Geometry::Stepped { edge, longest, step };
        let yolos = json!({"image_processor_type": "YolosImageProcessor"});
        check(yolos, stepped(800, Some(1333), Step::Down(16)), Resample::Bilinear);
        let maskformer = json!({"image_processor_type": "MaskFormerImageProcessor", "size": {"shortest_edge": 96, "longest_edge": 200}, "size_divisor": 0});
        check(maskformer, stepped(96, Some(200), Step::Up(1)), Resample::Bilinear);
        let textnet = json!({"image_processor_type": "TextNetImageProcessor", "size": 640});
        check(textnet, stepped(640, None, Step::Up(32)), Resample::Bilinear);
        let glpn = check(
            json!({"feature_extractor_type": "GLPNFeatureExtractor", "size_divisor": 16}),
            Geometry::Own { step: Step::Down(16) },
            Resample::Bilinear,
        );
        assert_eq!(glpn.normalize.apply(0, 255), 1.0);
        let mobilevit =
            check(json!({"image_processor_type": "MobileViTImageProcessor"}), edge(224, 256), Resample::Bilinear);
        assert_eq!(mobilevit.channel_order, ChannelOrder::Bgr);
        assert_eq!(mobilevit.normalize.mean, [0.0; 3]);
    }

    #[test]
    fn normalisation_is_that_of_the_reference() {
        let at = |file: Value, value: u8| {
            ImageSettings::new(Some(&file), None, &any_size()).unwrap().normalize.apply(0, value)
        };
        let vit = |more: Value| {
            let mut file = json!({"image_processor_type": "ViTImageProcessor"});
            file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            file
        };
        assert_eq!(at(vit(json!({})), 255), 1.0);
        assert_eq!(at(vit(json!({"do_normalize": false})), 51), 0.2);
        assert_eq!(at(vit(json!({"do_rescale": false, "image_mean": 100, "image_std": [2]})), 51), -24.5);
        assert_eq!(at(json!({"size": 8}), 255), 1.0);
        assert_eq!(at(json!({"size": 8, "image_mean": [0.5, 0.4, 0.3]}), 255), 1.0);
        let efficientnet = json!({"image_processor_type": "EfficientNetImageProcessor", "rescale_factor": 1.0 / 127.5,
            "rescale_offset": true, "image_mean": [0.0, 0.0, 0.0], "image_std": [0.5, 0.5, 0.5]});
        assert_eq!(at(efficientnet, 255), 4.0);
        let top =
            json!({"image_processor_type": "EfficientNetImageProcessor", "do_normalize": false, "image_std": 0.5});
        assert_eq!(at(top, 255), 2.0);
    }

    #[test]
    fn the_manifest_overrides_the_file() {
        let file = json!({"image_processor_type": "MobileNetV2ImageProcessor"});
        let with = |text: &str| {
            let overrides = toml::from_str(text).unwrap();
            ImageSettings::new(Some(&file), Some(&overrides), &any_size()).unwrap()
        };
        let resized = with("size = { height = 8, width = 9 }\nresample = \"hamming\"");
        assert_eq!(resized.geometry, Geometry::Exact { size: size(8, 9), crop: None });
        assert_eq!(resized.resample, Resample::Hamming);
        let cropped = with("crop_size = { height = 8, width = 9 }");
        assert_eq!(cropped.geometry, Geometry::ShortestEdge { edge: 256, longest: None, crop: Some(size(8, 9)) });
        let boxed =
            with("size = { height = 8, width = 9 }\nresize = \"letterbox\"\npad_value = 3\nchannel_order = \"BGR\"");
        assert_eq!(boxed.geometry, Geometry::Letterbox { size: size(8, 9), pad_value: 3 });
        assert_eq!(boxed.channel_order, ChannelOrder::Bgr);
        let plain = with("rescale_factor = 1.0\nmean = [0.0]\nstd = [1.0]");
        assert_eq!(plain.normalize.apply(2, 200), 200.0);
    }

    #[test]
    fn without_a_file_the_graph_says_the_size() {
        let grey = ImageInput::find(&[spec("x", DType::Fp32, &[1, 1, 28, 26])]).unwrap();
        let settings = ImageSettings::new(None, None, &grey).unwrap();
        assert_eq!(settings.geometry, Geometry::Exact { size: size(28, 26), crop: None });
        assert_eq!(settings.channel_order, ChannelOrder::Grey);
        assert_eq!(settings.normalize.apply(0, 255), 1.0);
        refused(None, None, &any_size(), "the size of the pictures is unknown");
        refused(None, Some("mean = [1.0]"), &any_size(), "the size of the pictures is unknown");
    }

    #[test]
    fn values_that_cannot_be_meant_are_named() {
        let any = any_size();
        for (file, expected) in [
            (json!([]), "preprocessor_config.json: expected an object"),
            (json!({"size": 0}), "size: expected a side"),
            (json!({"size": 1e9}), "size: expected a side"),
            (json!({"size": {"width": 3}}), "size: expected a side"),
            (json!({"size": {"shortest_edge": 9, "longest_edge": 9}}), "size: expected a side"),
            (json!({"size": 8, "resample": 9}), "resample: expected one of Pillow's filters"),
            (json!({"size": 8, "do_resize": "yes"}), "do_resize: expected true or false"),
            (json!({"size": 8, "image_mean": [0.1, 0.2]}), "image_mean: expected 3 values"),
            (json!({"size": 8, "image_mean": 0, "image_std": 0}), "image_std: expected numbers other than 0"),
            (json!({"size": 8, "do_center_crop": true}), "do_center_crop needs crop_size"),
            (json!({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}), "crop_pct: expected 0.01 to 1"),
        ] {
            refused(Some(file), None, &any, expected);
        }
        let file = Some(json!({"size": 8}));
        refused(file.clone(), Some("resize = \"stretch\""), &any, "[pipeline.image] resize: expected");
        refused(file.clone(), Some("channel_order = \"L\""), &any, "has 3 channels: expected \"RGB\" or \"BGR\"");
        refused(file.clone(), Some("pad_value = 3"), &any, "only a letterbox is filled");
        refused(file.clone(), Some("std = [1.0, 0.0, 1.0]"), &any, "[pipeline.image] std");
        let fixed = ImageInput::find(&[spec("x", DType::Fp32, &[1, 3, 16, 12])]).unwrap();
        refused(file, None, &fixed, "gives pictures of 8×8 (width×height), but input \"x\" takes 12×16");
    }
}
