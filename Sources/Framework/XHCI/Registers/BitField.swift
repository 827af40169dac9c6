// SPDX-License-Identifier: Apache-2.0

/// Bit fields of registers, TRBs and contexts. Ranges include both ends, as in the specification:
/// its `16:0` is `value[bits: 0...16]`.
extension FixedWidthInteger {
    /// The bit field of a range, shifted down to bit 0.
    ///
    /// Setting a value that does not fit is a programming error: debug builds trap, release builds
    /// drop its upper bits.
    subscript(bits range: ClosedRange<Int>) -> Self {
        get { (self &>> Self(range.lowerBound)) & Self.mask(of: range) }
        set {
            let mask = Self.mask(of: range)
            assert(newValue & ~mask == 0, "\(newValue) does not fit bits \(range)")
            let shift = Self(range.lowerBound)
            self = (self & ~(mask &<< shift)) | ((newValue & mask) &<< shift)
        }
    }

    /// A single bit as a flag.
    subscript(bit position: Int) -> Bool {
        get { (self &>> Self(position)) & 1 != 0 }
        set {
            let mask = Self(1) &<< Self(position)
            if newValue { self |= mask } else { self &= ~mask }
        }
    }

    /// The positions of the bits that are set, in ascending order.
    var setBits: SetBits<Self> { SetBits(remaining: self) }

    private static func mask(of range: ClosedRange<Int>) -> Self {
        range.count >= Self.bitWidth ? ~0 : (Self(1) &<< Self(range.count)) &- 1
    }
}

/// The halves of a 64-bit register, which software may access as two doublewords (xHCI 5.1).
extension UInt64 {
    var lowHalf: UInt32 {
        get { UInt32(truncatingIfNeeded: self) }
        set { self = self & ~0xffff_ffff | UInt64(newValue) }
    }

    var highHalf: UInt32 {
        get { UInt32(truncatingIfNeeded: self >> 32) }
        set { self = self & 0xffff_ffff | UInt64(newValue) << 32 }
    }
}

/// The sequence that ``Swift/FixedWidthInteger/setBits`` returns.
struct SetBits<Value: FixedWidthInteger>: Sequence, IteratorProtocol {
    fileprivate var remaining: Value

    mutating func next() -> Int? {
        guard remaining != 0 else { return nil }
        let position = remaining.trailingZeroBitCount
        remaining &= remaining &- 1
        return position
    }
}
