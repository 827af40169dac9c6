// SPDX-License-Identifier: Apache-2.0

/// An address in the guest's memory, as a device on its bus sees it.
public struct GuestAddress: RawRepresentable, Hashable, Comparable, Sendable {
    public let rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

    /// The address `offset` bytes further. It wraps around as the bus does: a guest that counts past
    /// the end of the address space meets unmapped memory, not a trap.
    public static func + (address: Self, offset: Int) -> Self {
        Self(rawValue: address.rawValue &+ UInt64(bitPattern: Int64(offset)))
    }
}

extension GuestAddress: CustomStringConvertible {
    public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// An access to guest memory that cannot be made: what hardware would call a bus error.
public struct DMAError: Error, Equatable {
    /// Why.
    public enum Reason: Sendable {
        /// No region holds the whole range.
        case unmapped
        /// The range may not be written.
        case readOnly
        /// The client did not answer, or its file lost the pages.
        case lost
        /// There is no memory to put the bytes into.
        case noBuffer
    }

    public let address: GuestAddress
    public let count: Int
    public let reason: Reason

    public init(_ reason: Reason, at address: GuestAddress, count: Int) {
        self.reason = reason
        self.address = address
        self.count = count
    }
}
