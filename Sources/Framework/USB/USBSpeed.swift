// SPDX-License-Identifier: Apache-2.0

/// The speed at which a device is connected, in the order of the xHCI default speed ids
/// (xHCI 7.2.2.1.1).
public enum USBSpeed: UInt8, CaseIterable, Sendable, Comparable {
    /// 12 Mb/s.
    case full = 1
    /// 1.5 Mb/s.
    case low = 2
    /// 480 Mb/s.
    case high = 3
    /// 5 Gb/s, SuperSpeed Gen1 x1.
    case superSpeed = 4
    /// 10 Gb/s, SuperSpeedPlus Gen2 x1.
    case superSpeedPlus = 5

    /// Whether the device sits on a USB 3 port of the root hub.
    public var isSuperSpeed: Bool { self >= .superSpeed }

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
