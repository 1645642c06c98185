//! Finds out at load how a model's requests may share a run: what the graph declares, confirmed by running it.
//!
//! A graph that declares a free first dimension may still mix its rows (a norm over the batch, a matrix product of rows with
//! rows), or use dim 0 for something else; then joining would change answers without an error. So two made-up rows are run
//! alone and together, and must give the same. What cannot be confirmed is not joined.

use super::batch::{self, Extent};
use super::plan::{Joining, PaddedInput, Padding, Plan};
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::{DType, Dim, Tensor, Value};

/// Makes the inputs of `rows` rows, sequences being of `length`; another seed makes other values. `None` where it cannot.
pub type MakeInputs<'a> = dyn Fn(usize, usize, u64) -> Option<Vec<Input>> + 'a;

/// Largest fixed batch that is tried out.
const FIXED_MAX: usize = 512;
/// Lengths of the made-up sequences; different enough to tell the axes that follow them.
pub(super) const LENGTHS: (usize, usize) = (5, 8);

/// The plan of a model. `padding` are the inputs that the model's files allow to be padded.
pub fn probe(session: &mut dyn Session, make: &MakeInputs<'_>, padding: &[PaddedInput], interrupt: &Interrupt) -> Plan {
    let (joining, inputs) = match declared(session) {
        Ok(declared) => declared,
        Err(reason) => return Plan::alone(reason),
    };
    let plan = Plan { joining, inputs, padding: None, max_row_bytes: None, steps: None, evidence: String::new() };
    let mut prober = Prober { session, make, interrupt };
    let confirmed = match joining {
        Joining::Alone => return plan,
        // A row that runs alone cannot see another.
        Joining::Fixed(1) => return Plan { evidence: "the graph takes one row at a time".to_owned(), ..plan },
        Joining::Fixed(rows) => prober.fixed(&plan, rows),
        Joining::Rows => prober.rows(&plan),
    };
    match confirmed {
        Err(reason) => Plan::alone(reason),
        Ok(evidence) if padding.is_empty() || joining != Joining::Rows => Plan { evidence, ..plan },
        Ok(evidence) => match prober.padding(&plan, padding) {
            Ok(padding) => {
                let evidence = format!("{evidence}; masked padding does not change the answers");
                Plan { padding: Some(padding), evidence, ..plan }
            }
            Err(reason) => Plan { evidence: format!("{evidence}; not padded: {reason}"), ..plan },
        },
    }
}

/// What the shapes say, and which inputs hold rows.
fn declared(session: &dyn Session) -> Result<(Joining, Vec<usize>), String> {
    let mut common: Option<&Dim> = None;
    let mut inputs = Vec::new();
    for (index, spec) in session.inputs().iter().enumerate().filter(|(_, spec)| !spec.optional) {
        let Some(first) = spec.ty.shape().and_then(<[Dim]>::first) else {
            return Err(format!("input '{}' is {}, without a dimension for rows", spec.name, spec.ty));
        };
        let sub_byte = spec.ty.dtype().is_none_or(|dtype| dtype.size().is_none() && dtype != DType::String);
        let agrees = match (common, first) {
            (None, _) => true,
            (Some(Dim::Dynamic(Some(one))), Dim::Dynamic(Some(other))) => one == other,
            (Some(Dim::Dynamic(_)), Dim::Dynamic(_)) => true,
            (Some(one), other) => one == other,
        };
        if !agrees || sub_byte {
            return Err(format!(
                "input '{}' is {}, whose first dimension is not that of the others",
                spec.name, spec.ty
            ));
        }
        common = Some(first);
        inputs.push(index);
    }
    let joining = match common {
        None => return Err("the graph needs no input".to_owned()),
        Some(Dim::Dynamic(_)) => Joining::Rows,
        Some(Dim::Fixed(0)) => return Err("the graph takes no rows".to_owned()),
        Some(Dim::Fixed(rows)) => Joining::Fixed(*rows),
    };
    for spec in session.outputs() {
        let follows = match (spec.ty.dtype(), spec.ty.shape().map(<[Dim]>::first), joining) {
            (None, _, _) | (_, Some(None), _) | (_, _, Joining::Alone) => false,
            // Where nothing is declared the run tells; one row cannot.
            (_, None, Joining::Fixed(rows)) => rows > 1,
            (_, None, Joining::Rows) | (_, Some(Some(Dim::Dynamic(_))), Joining::Rows) => true,
            (_, Some(Some(Dim::Dynamic(_))), Joining::Fixed(rows)) => rows > 1,
            (_, Some(Some(Dim::Fixed(_))), Joining::Rows) => false,
            (_, Some(Some(Dim::Fixed(size))), Joining::Fixed(rows)) => *size == rows,
        };
        if !follows {
            return Err(format!("output '{}' is {}, which does not follow the rows of the inputs", spec.name, spec.ty));
        }
    }
    match joining {
        Joining::Fixed(rows) if rows > FIXED_MAX => {
            Err(format!("the graph's fixed batch of {rows} is too large to try out"))
        }
        joining => Ok((joining, inputs)),
    }
}

struct Prober<'a> {
    session: &'a mut dyn Session,
    make: &'a MakeInputs<'a>,
    interrupt: &'a Interrupt,
}

type Outputs = Vec<(usize, Value)>;

impl Prober<'_> {
    fn run(&mut self, inputs: &[Input]) -> Result<Outputs, String> {
        let all: Vec<usize> = (0..self.session.outputs().len()).collect();
        let outputs =
            self.session.run(inputs, &all, self.interrupt).map_err(|error| format!("a trial run failed: {error}"))?;
        Ok(all.into_iter().zip(outputs).collect())
    }

    fn make(&self, rows: usize, length: usize, seed: u64) -> Result<Vec<Input>, String> {
        (self.make)(rows, length, seed).ok_or_else(|| "no input could be made up for a trial run".to_owned())
    }

    /// Two different rows, alone and together.
    fn rows(&mut self, plan: &Plan) -> Result<String, String> {
        let rows = [self.make(1, LENGTHS.1, 1)?, self.make(1, LENGTHS.1, 2)?];
        let alone = [self.run(&rows[0])?, self.run(&rows[1])?];
        let extents = [Extent { rows: 1, length: 0 }; 2];
        let parts: Vec<(&[Input], Extent)> = rows.iter().map(Vec::as_slice).zip(extents).collect();
        let both = batch::stack(&parts, plan, 0).ok_or("two rows could not be stacked")?;
        let both = self.run(&both).map_err(|reason| format!("two rows at once: {reason}"))?;
        let shares = batch::split(&both, &extents, plan, 0).ok_or("with two rows the outputs do not have two")?;
        for (share, alone) in shares.iter().zip(&alone) {
            same(share, alone, self.session)?;
        }
        Ok("two trial rows gave the same alone and together".to_owned())
    }

    /// As many different rows as the graph takes, in one order and in the other.
    fn fixed(&mut self, plan: &Plan, rows: usize) -> Result<String, String> {
        let made: Vec<Vec<Input>> =
            (0..rows as u64).map(|seed| self.make(1, LENGTHS.1, seed + 1)).collect::<Result<_, _>>()?;
        let extents = vec![Extent { rows: 1, length: 0 }; rows];
        let mut shares = Vec::with_capacity(2);
        for backwards in [false, true] {
            let mut parts: Vec<(&[Input], Extent)> =
                made.iter().map(Vec::as_slice).zip(extents.iter().copied()).collect();
            if backwards {
                parts.reverse();
            }
            let inputs = batch::stack(&parts, plan, 0).ok_or("trial rows could not be stacked")?;
            let outputs = self.run(&inputs)?;
            shares.push(
                batch::split(&outputs, &extents, plan, 0).ok_or("the outputs do not have a row for each input row")?,
            );
        }
        let [forwards, backwards] = shares.as_slice() else { return Err("the trial runs are not complete".to_owned()) };
        for (one, other) in forwards.iter().zip(backwards.iter().rev()) {
            let other: Outputs = other.iter().cloned().enumerate().collect();
            same(one, &other, self.session)?;
        }
        Ok(format!("the graph takes {rows} rows, and trial rows gave the same in another order"))
    }

    /// A short and a longer sequence: which outputs follow the length, and whether padding the short one changes it.
    fn padding(&mut self, plan: &Plan, inputs: &[PaddedInput]) -> Result<Padding, String> {
        let (short, long) = LENGTHS;
        let made = [self.make(1, short, 3)?, self.make(1, long, 4)?];
        let alone = [self.run(&made[0])?, self.run(&made[1])?];
        let mut outputs = Vec::new();
        for ((index, one), (_, other)) in alone[0].iter().zip(&alone[1]) {
            let (Some(one), Some(other)) = (one.as_tensor(), other.as_tensor()) else {
                return Err("an output is not a tensor".to_owned());
            };
            if one.shape().len() != other.shape().len() {
                return Err("the rank of an output follows the length".to_owned());
            }
            let follow: Vec<usize> =
                (0..one.shape().len()).filter(|&axis| one.shape().get(axis) != other.shape().get(axis)).collect();
            match follow.as_slice() {
                [] => {}
                [axis]
                    if *axis > 0
                        && one.shape().get(*axis) == Some(&short)
                        && other.shape().get(*axis) == Some(&long) =>
                {
                    outputs.push((*index, *axis));
                }
                _ => return Err("an output follows the length in more than one axis".to_owned()),
            }
        }
        let padding = Padding { inputs: inputs.to_vec(), outputs };
        let plan = Plan { padding: Some(padding.clone()), ..plan.clone() };
        let extents = [Extent { rows: 1, length: short }, Extent { rows: 1, length: long }];
        let parts: Vec<(&[Input], Extent)> = made.iter().map(Vec::as_slice).zip(extents).collect();
        let both = batch::stack(&parts, &plan, 0).ok_or("a sequence could not be padded")?;
        let both = self.run(&both)?;
        let shares = batch::split(&both, &extents, &plan, 0).ok_or("the padded outputs could not be cut")?;
        for (share, alone) in shares.iter().zip(&alone) {
            same(share, alone, self.session).map_err(|_| "a padded sequence gives another answer".to_owned())?;
        }
        Ok(padding)
    }
}

/// Whether a row's outputs are those of the same row alone, but for the last digits.
fn same(share: &[Value], alone: &[(usize, Value)], session: &dyn Session) -> Result<(), String> {
    for (value, (index, expected)) in share.iter().zip(alone) {
        let agree = match (value.as_tensor(), expected.as_tensor()) {
            (Some(value), Some(expected)) => close(value, expected),
            _ => false,
        };
        if !agree {
            let name = session.outputs().get(*index).map(|spec| spec.name.as_str()).unwrap_or_default();
            return Err(format!("output '{name}' of a trial row changes with the rows beside it"));
        }
    }
    Ok(())
}

fn close(value: &Tensor, expected: &Tensor) -> bool {
    if value.dtype() != expected.dtype() || value.shape() != expected.shape() {
        return false;
    }
    let tolerance = match value.dtype() {
        DType::Fp32 | DType::Fp64 => 1e-3,
        DType::Fp16 | DType::Bf16 => 2e-2,
        _ => return value.bytes() == expected.bytes() && value.strings() == expected.strings(),
    };
    let (Some(values), Some(expected)) = (value.to_f32(), expected.to_f32()) else { return false };
    let scale = expected.iter().filter(|x| x.is_finite()).fold(0f32, |largest, x| largest.max(x.abs()));
    values.iter().zip(&expected).all(|(x, y)| {
        // Sums in another order differ by the size of what was summed, not of the result.
        x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * scale.max(1e-3)
    })
}
