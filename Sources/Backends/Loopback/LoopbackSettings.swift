// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import USB

/// The settings in a `loopback:` specification: speed, data, and the shape of each endpoint.
///
/// They are checked against the rules of each speed (USB 2.0, 5.5.3, 5.6.3, 5.7.3, 5.8.3 and 9.6.6;
/// USB 3.2, 8.12 and 9.6.7).
struct LoopbackSettings {
    enum Speed: String, CaseIterable {
        case full
        case high
        case `super`

        var speed: USBSpeed {
            switch self {
            case .full: .full
            case .high: .high
            case .super: .superSpeed
            }
        }
    }

    var speed: Speed
    var pattern = PatternKind.zero
    var serial = "usbvfiod-loopback"
    // Packet sizes are in bytes, intervals are `bInterval`, bursts are in packets.
    var bulkPacket: Int
    /// At most 16 at SuperSpeed, otherwise 1.
    var bulkBurst: Int
    var interruptPacket: Int
    var interruptInterval: Int
    var isoPacket: Int
    var isoInterval: Int
    /// Packets in a service interval; at SuperSpeed bursts in a service interval.
    var isoMult = 1
    /// At most 16 at SuperSpeed, otherwise 1.
    var isoBurst = 1

    /// The default settings of a speed.
    ///
    /// Periodic endpoints have a service interval of 1 ms. At full speed both isochronous endpoints
    /// fit into one frame.
    init(_ speed: Speed) {
        self.speed = speed
        switch speed {
        case .full:
            (bulkPacket, interruptPacket, isoPacket) = (64, 64, 512)
            (interruptInterval, isoInterval) = (1, 1)
        case .high:
            (bulkPacket, interruptPacket, isoPacket) = (512, 1024, 1024)
            (interruptInterval, isoInterval) = (4, 4)
        case .super:
            (bulkPacket, interruptPacket, isoPacket) = (1024, 1024, 1024)
            (interruptInterval, isoInterval) = (4, 4)
        }
        bulkBurst = speed == .super ? 16 : 1
    }

    /// Bytes that an isochronous endpoint moves in a service interval.
    var isoBytesPerInterval: Int { isoPacket * isoBurst * isoMult }

    /// The settings of a specification.
    init(_ specification: DeviceSpecification) throws(BackendError) {
        self.init(try specification.choice("speed", of: Speed.self) ?? .high)
        if let pattern = try specification.choice("pattern", of: PatternKind.self) {
            self.pattern = pattern
        }
        if let serial = try specification.value(of: "serial") {
            guard serial.utf16.count <= 126 else {
                throw BackendError("'serial=\(serial)' must be at most 126 characters")
            }
            self.serial = serial
        }
        let isFull = speed == .full
        let bursts = 1...(speed == .super ? 16 : 1)
        let bulk: [ClosedRange<Int>] =
            switch speed {
            case .full: [8...8, 16...16, 32...32, 64...64]
            case .high: [512...512]
            case .super: [1024...1024]
            }
        try read(specification, "bulk-packet", into: \.bulkPacket, bulk)
        try read(specification, "bulk-burst", into: \.bulkBurst, [bursts])
        try read(
            specification, "interrupt-packet", into: \.interruptPacket, [1...(isFull ? 64 : 1024)])
        try read(
            specification, "interrupt-interval", into: \.interruptInterval,
            [1...(isFull ? 255 : 16)])
        try read(specification, "iso-interval", into: \.isoInterval, [1...16])
        try read(specification, "iso-mult", into: \.isoMult, [1...(isFull ? 1 : 3)])
        try read(specification, "iso-burst", into: \.isoBurst, [bursts])
        try read(specification, "iso-packet", into: \.isoPacket, [1...(isFull ? 1023 : 1024)])
        try checkIsochronous()
    }

    /// Checks that the isochronous packets are large enough for several of them in an interval.
    private func checkIsochronous() throws(BackendError) {
        switch speed {
        case .full: return
        case .high:
            let least = isoMult == 3 ? 683 : isoMult == 2 ? 513 : 1
            guard isoPacket >= least else {
                throw BackendError(
                    "at high speed 'iso-mult=\(isoMult)' needs an 'iso-packet' of at least "
                        + "\(least), not \(isoPacket)")
            }
        case .super:
            guard isoPacket == 1024 || isoBurst == 1 else {
                throw BackendError(
                    "at super speed 'iso-burst=\(isoBurst)' needs 'iso-packet=1024', "
                        + "not \(isoPacket)")
            }
            guard isoBurst > 1 || isoMult == 1 else {
                throw BackendError(
                    "at super speed 'iso-mult=\(isoMult)' needs an 'iso-burst' of at least 2")
            }
        }
    }

    /// Reads a number that must be in one of the ranges.
    private mutating func read(
        _ specification: DeviceSpecification, _ name: String,
        into field: WritableKeyPath<Self, Int>, _ allowed: [ClosedRange<Int>]
    ) throws(BackendError) {
        guard let value: Int = try specification.number(name, in: 0...Int(UInt16.max)) else {
            return
        }
        guard allowed.contains(where: { $0.contains(value) }) else {
            let ranges = allowed.map { range in
                range.count == 1
                    ? "\(range.lowerBound)" : "\(range.lowerBound) to \(range.upperBound)"
            }
            throw BackendError(
                "'\(name)=\(value)' is not possible at \(speed.rawValue) speed: "
                    + ranges.joined(separator: ", "))
        }
        self[keyPath: field] = value
    }
}
