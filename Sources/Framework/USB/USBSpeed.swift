// SPDX-License-Identifier: Apache-2.0

/// The speed of a device's connection.
///
/// The raw value is the default Protocol Speed ID (xHCI 7.2.2.1.1). Speeds compare by bit rate,
/// which is not the order of the IDs.
public enum USBSpeed: UInt8, CaseIterable, Sendable, Comparable {
    /// Full speed, 12 Mb/s.
    case full = 1
    /// Low speed, 1.5 Mb/s.
    case low = 2
    /// High speed, 480 Mb/s.
    case high = 3
    /// SuperSpeed, Gen 1 x1, 5 Gb/s.
    case superSpeed = 4
    /// SuperSpeedPlus, Gen 2 x1, 10 Gb/s.
    case superSpeedPlus = 5

    /// Whether a device of this speed is attached to a USB 3 port of the root hub, not a USB 2
    /// port.
    public var isSuperSpeed: Bool { self >= .superSpeed }

    /// Whether `left` has the lower bit rate.
    public static func < (left: USBSpeed, right: USBSpeed) -> Bool { left.rank < right.rank }

    private var rank: Int {
        switch self {
        case .low: 0
        case .full: 1
        case .high: 2
        case .superSpeed: 3
        case .superSpeedPlus: 4
        }
    }
}
