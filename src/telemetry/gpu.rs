//! The NVIDIA GPUs of this machine and what they are doing, by NVML; nothing where there is no driver.
//!
//! The driver's library is opened at run time, once. Reading takes tens of microseconds; utilisation is the driver's own figure of
//! its last sampling period, a sixth of a second to a second.

use nvml_wrapper::Nvml;
use std::sync::OnceLock;

/// One GPU, as the driver numbers it; CUDA's numbers are the same where `CUDA_DEVICE_ORDER=PCI_BUS_ID` and none is hidden.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    pub index: u32,
    pub name: String,
    pub memory_total_bytes: u64,
    /// Of all processes.
    pub memory_used_bytes: u64,
    /// Share of the last sampling period in which a kernel ran, 0 to 1; `None` where the GPU does not tell.
    pub utilization: Option<f64>,
    pub temperature_celsius: Option<u32>,
    pub power_watts: Option<f64>,
}

fn nvml() -> Result<&'static Nvml, &'static str> {
    static OPENED: OnceLock<Result<Nvml, String>> = OnceLock::new();
    OPENED.get_or_init(|| Nvml::init().map_err(|error| error.to_string())).as_ref().map_err(String::as_str)
}

/// The GPUs there are; empty where there is no driver or no GPU.
pub fn gpus() -> Vec<Gpu> {
    let Ok(nvml) = nvml() else { return Vec::new() };
    (0..nvml.device_count().unwrap_or(0)).filter_map(|index| read(nvml, index)).collect()
}

/// Memory of a GPU, in bytes; `None` where it cannot be read.
pub fn memory_total_bytes(index: u32) -> Option<u64> {
    Some(nvml().ok()?.device_by_index(index).ok()?.memory_info().ok()?.total)
}

/// Name and compute capability of a GPU, such as `NVIDIA H100 80GB HBM3, compute capability 9.0`; `None` where they cannot be
/// read.
pub fn identity(index: u32) -> Option<String> {
    let device = nvml().ok()?.device_by_index(index).ok()?;
    let capability = device.cuda_compute_capability().ok()?;
    Some(format!("{}, compute capability {}.{}", device.name().ok()?, capability.major, capability.minor))
}

/// Memory of a GPU that this process holds, as the driver counts it: contexts and all. `None` where the driver does not tell, or knows
/// the process by another number, as in some containers, or the process has not used the GPU yet.
pub fn own_bytes(index: u32) -> Option<u64> {
    use nvml_wrapper::enums::device::UsedGpuMemory;
    let processes = nvml().ok()?.device_by_index(index).ok()?.running_compute_processes().ok()?;
    let own = processes.into_iter().find(|process| process.pid == std::process::id())?;
    match own.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

/// Version of the driver; `None` where there is none.
pub fn driver_version() -> Option<String> {
    nvml().ok()?.sys_driver_version().ok()
}

fn read(nvml: &Nvml, index: u32) -> Option<Gpu> {
    use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
    let device = nvml.device_by_index(index).ok()?;
    let memory = device.memory_info().ok()?;
    Some(Gpu {
        index,
        name: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
        memory_total_bytes: memory.total,
        memory_used_bytes: memory.used,
        utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_can_be_read_and_nothing_is_made_up() {
        let found = gpus();
        assert_eq!(found.is_empty(), driver_version().is_none() || memory_total_bytes(0).is_none(), "{found:?}");
        for gpu in &found {
            assert!(gpu.memory_used_bytes <= gpu.memory_total_bytes && gpu.memory_total_bytes > 0, "{gpu:?}");
            assert!(gpu.utilization.is_none_or(|share| (0.0..=1.0).contains(&share)), "{gpu:?}");
        }
        assert_eq!(memory_total_bytes(100_000), None);
        assert_eq!(own_bytes(100_000), None);
        assert_eq!((identity(100_000), identity(0).is_some()), (None, !found.is_empty()));
    }
}
