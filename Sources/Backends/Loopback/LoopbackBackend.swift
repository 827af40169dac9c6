// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
public import USB

/// The `loopback:` backend: a test device for driver developers, which is gadget zero to Linux.
public final class LoopbackBackend: DeviceBackend {
    public static let scheme = "loopback"
    public static let summary =
        "a test device for driver developers (gadget zero of Linux, for usbtest)"
    public static let example = "loopback:speed=super"
    public static let parameters = [
        Parameter("speed", value: "full|high|super", summary: "default high"),
        Parameter(
            "pattern", value: "zero|mod63|none",
            summary: "data that is sent, and expected from the host; default zero"),
        Parameter("serial", value: "TEXT", summary: "serial number"),
        Parameter(
            "bulk-packet", value: "N", summary: "bytes; full speed 8, 16, 32 or 64 (default)"),
        Parameter("bulk-burst", value: "N", summary: "packets, 1 to 16 (default) at super speed"),
        Parameter("interrupt-packet", value: "N", summary: "bytes; default the maximum"),
        Parameter("interrupt-interval", value: "N", summary: "bInterval; default 1 ms"),
        Parameter(
            "iso-packet", value: "N", summary: "bytes; default 512 at full speed, else 1024"),
        Parameter("iso-interval", value: "N", summary: "bInterval, 1 to 16; default 1 ms"),
        Parameter("iso-mult", value: "N", summary: "1 to 3 packets (bursts) in an interval"),
        Parameter("iso-burst", value: "N", summary: "packets, 1 to 16 at super speed; default 1"),
        Parameter("faults", value: "FILE", summary: "a file with fault rules, one a line"),
        Parameter(
            "fault", value: "RULE;…",
            summary: "fault rules, such as 'bulk-in stall after=9' (see docs/loopback.md)"),
    ]

    private let device: LoopbackDevice
    private let loop: any EventLoop
    private let logger: Logger
    private weak var bus: (any USBBus)?
    /// The timer that attaches the device again after a disconnect fault.
    private var reconnection: Watch?

    public init(
        _ specification: DeviceSpecification, context: BackendContext
    ) throws(BackendError) {
        let settings = try LoopbackSettings(specification)
        loop = context.loop
        logger = context.logger
        device = LoopbackDevice(settings, loop: loop, logger: logger)
        var rules: [FaultRule] = []
        if let path = try specification.value(of: "faults") {
            rules += try Self.rules(FaultFile.text(path), from: path)
        }
        if let text = try specification.value(of: "fault") {
            rules += try Self.rules(text, from: "fault=")
        }
        device.setFaults(rules)
        device.onDisconnect = { [weak self] time in self?.reconnect(after: time) }
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        do throws(AttachError) {
            try bus.attach(device)
            self.bus = bus
        } catch {
            throw BackendError(
                cannotAttach: device.summary, error,
                remedy: device.speed == .superSpeed ? "use speed=high" : "use speed=super")
        }
    }

    /// Replaces all fault rules while the device is in use. NAK faults of the old rules end.
    ///
    /// - Parameter text: a fault script; an empty one removes all rules.
    /// - Throws: an error that names the line and the reason. The old rules then remain.
    public func replaceFaults(_ text: String) throws(BackendError) {
        device.setFaults(try Self.rules(text, from: "faults"))
    }

    public func stop() {
        reconnection = nil
        bus?.detach(device)
        bus = nil
    }

    private func reconnect(after time: Duration?) {
        guard let time else { return }
        reconnection = loop.schedule(at: loop.now + time) { [weak self] in self?.reattach() }
    }

    private func reattach() {
        do throws(AttachError) {
            try bus?.attach(device)
        } catch {
            logger.error("cannot attach '\(device.summary)' again: \(error)")
        }
    }

    private static func rules(
        _ text: String, from source: String
    ) throws(BackendError) -> [FaultRule] {
        do throws(FaultScriptError) {
            return try FaultScript.parse(text)
        } catch {
            throw BackendError("\(source):\(error.line): \(error.reason)")
        }
    }
}
