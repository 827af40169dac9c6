// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import USB

/// The log of the test device: its faults, and data that differs from the pattern. Lines beyond a
/// limit are logged at debug level.
struct DeviceLog {
    let device: String
    let logger: Logger
    private var mismatches = 0

    init(device: String, logger: Logger) {
        self.device = device
        self.logger = logger
    }

    func fault(_ fault: FaultPlan.Fault) {
        let level: Logger.Level = fault.occurrence > LoopbackLimits.faultsLogged ? .debug : .notice
        logger.log(
            level: level,
            "\(device): fault '\(fault.rule.text)' on transfer \(fault.number): the host sees \(fault.rule.effect)"
        )
    }

    /// Logs the first byte of a transfer that differs from the pattern.
    mutating func mismatch(_ mismatch: SourceSink.Mismatch, at pipe: Pipe, pattern: PatternKind) {
        mismatches += 1
        let level: Logger.Level =
            mismatches > LoopbackLimits.wrongBytesLogged ? .debug : .notice
        let consequence = pipe.canHalt ? "; the endpoint is halted" : ""
        logger.log(
            level: level,
            "\(device): wrong data at endpoint \(pipe.address.hexadecimal): byte \(mismatch.offset) of the transfer is \(mismatch.byte), which is not in the pattern '\(pattern.rawValue)'\(consequence)"
        )
    }

    /// Counts mismatches from 0 again.
    mutating func reset() { mismatches = 0 }
}

extension EndpointAddress {
    /// The address as `lsusb` and kernels write it, such as `0x81`.
    var hexadecimal: String {
        "0x" + (rawValue < 0x10 ? "0" : "") + String(rawValue, radix: 16)
    }
}
