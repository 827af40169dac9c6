// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import USB

/// What the operator chose: speed, data, and the shape of each endpoint, checked against what USB
/// allows at the speed (USB 2.0, 5.5.3, 5.6.3, 5.7.3, 5.8.3 and 9.6.6; USB 3.2, 8.12 and 9.6.7).
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
    var bulkPacket: Int
    /// Packets in a burst, at SuperSpeed.
    var bulkBurst: Int
    var interruptPacket: Int
    /// `bInterval`.
    var interruptInterval: Int
    var isoPacket: Int
    /// `bInterval`.
    var isoInterval: Int
    /// Packets, or at SuperSpeed bursts, in a service interval.
    var isoMult = 1
    /// Packets in a burst, at SuperSpeed.
    var isoBurst = 1

    /// What each speed has unless something else is asked for: periodic endpoints have their turn
    /// once a millisecond. The two isochronous endpoints of full speed fit into one frame together.
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

    /// The bytes that an isochronous endpoint moves in a service interval.
    var isoBytesPerInterval: Int { isoPacket * isoBurst * isoMult }

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
        let isSuper = speed == .super
        let bulk: [Int] =
            switch speed {
            case .full: [8, 16, 32, 64]
            case .high: [512]
            case .super: [1024]
            }
        try read(specification, "bulk-packet", into: \.bulkPacket, allowed: bulk)
        try read(specification, "bulk-burst", into: \.bulkBurst, 1...(isSuper ? 16 : 1))
        try read(
            specification, "interrupt-packet", into: \.interruptPacket,
            1...(speed == .full ? 64 : 1024))
        try read(
            specification, "interrupt-interval", into: \.interruptInterval,
            1...(speed == .full ? 255 : 16))
        try read(specification, "iso-interval", into: \.isoInterval, 1...16)
        try read(specification, "iso-mult", into: \.isoMult, 1...(speed == .full ? 1 : 3))
        try read(specification, "iso-burst", into: \.isoBurst, 1...(isSuper ? 16 : 1))
        try read(
            specification, "iso-packet", into: \.isoPacket, 1...(speed == .full ? 1023 : 1024))
        try checkIsochronous()
    }

    /// Several packets in an interval are for those whom fewer do not suffice.
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

    private mutating func read(
        _ specification: DeviceSpecification, _ name: String,
        into field: WritableKeyPath<Self, Int>, _ range: ClosedRange<Int>
    ) throws(BackendError) {
        guard let value: Int = try specification.number(name, in: 0...Int(UInt16.max)) else {
            return
        }
        guard range.contains(value) else {
            let allowed =
                range.count == 1
                ? "\(range.lowerBound)" : "\(range.lowerBound) to \(range.upperBound)"
            throw BackendError(
                "'\(name)=\(value)' is not possible at \(speed.rawValue) speed: \(allowed)")
        }
        self[keyPath: field] = value
    }

    private mutating func read(
        _ specification: DeviceSpecification, _ name: String,
        into field: WritableKeyPath<Self, Int>, allowed: [Int]
    ) throws(BackendError) {
        guard let value: Int = try specification.number(name, in: 0...Int(UInt16.max)) else {
            return
        }
        guard allowed.contains(value) else {
            let words = allowed.map { "\($0)" }.joined(separator: ", ")
            throw BackendError(
                "'\(name)=\(value)' is not possible at \(speed.rawValue) speed: \(words)")
        }
        self[keyPath: field] = value
    }
}
