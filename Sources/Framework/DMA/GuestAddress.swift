// SPDX-License-Identifier: Apache-2.0

/// An address in guest memory, as a device on the guest's bus uses it.
public struct GuestAddress: RawRepresentable, Hashable, Comparable, Sendable {
    public let rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `offset` bytes further on, modulo 2^64: an offset past the end of the address
    /// space leads to unmapped memory and does not trap.
    public static func + (address: Self, offset: Int) -> Self {
        Self(rawValue: address.rawValue &+ UInt64(bitPattern: Int64(offset)))
    }
}

extension GuestAddress: CustomStringConvertible {
    public var description: String { "0x" + String(rawValue, radix: 16) }
}
