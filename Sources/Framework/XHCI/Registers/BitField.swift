// SPDX-License-Identifier: Apache-2.0

/// Bits of registers and TRBs, both ends included as the specification prints them: its `16:0` is
/// `value[bits: 0...16]`.
extension FixedWidthInteger {
    /// The bits of a range, moved down to bit 0.
    ///
    /// A value that does not fit is a programmer's error; release builds cut it.
    subscript(bits range: ClosedRange<Int>) -> Self {
        get { (self &>> Self(range.lowerBound)) & Self.mask(of: range) }
        set {
            let mask = Self.mask(of: range)
            assert(newValue & ~mask == 0, "\(newValue) does not fit bits \(range)")
            let shift = Self(range.lowerBound)
            self = (self & ~(mask &<< shift)) | ((newValue & mask) &<< shift)
        }
    }

    /// One bit as a flag.
    subscript(bit position: Int) -> Bool {
        get { (self &>> Self(position)) & 1 != 0 }
        set {
            let mask = Self(1) &<< Self(position)
            if newValue { self |= mask } else { self &= ~mask }
        }
    }

    /// The positions of the bits that are set, from the lowest on.
    var setBits: SetBits<Self> { SetBits(rest: self) }

    private static func mask(of range: ClosedRange<Int>) -> Self {
        range.count >= Self.bitWidth ? ~0 : (Self(1) &<< Self(range.count)) &- 1
    }
}

/// See ``setBits``.
struct SetBits<Value: FixedWidthInteger>: Sequence, IteratorProtocol {
    fileprivate var rest: Value

    mutating func next() -> Int? {
        guard rest != 0 else { return nil }
        let position = rest.trailingZeroBitCount
        rest &= rest &- 1
        return position
    }
}
