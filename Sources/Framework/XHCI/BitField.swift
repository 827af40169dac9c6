// SPDX-License-Identifier: Apache-2.0

extension FixedWidthInteger {
    /// The bits of `range`, numbered as the specification prints them (`16:0` is `0...16`).
    ///
    /// Setting asserts that the value fits, and cuts it in release.
    subscript(bits range: ClosedRange<Int>) -> Self {
        get { (self >> Self(range.lowerBound)) & Self.lowBits(range.count) }
        set {
            let mask = Self.lowBits(range.count)
            assert(newValue & ~mask == 0, "\(newValue) does not fit into bits \(range)")
            self &= ~(mask << Self(range.lowerBound))
            self |= (newValue & mask) << Self(range.lowerBound)
        }
    }

    /// One bit.
    subscript(bit index: Int) -> Bool {
        get { self >> Self(index) & 1 != 0 }
        set {
            let mask: Self = 1 << Self(index)
            self = newValue ? self | mask : self & ~mask
        }
    }

    private static func lowBits(_ count: Int) -> Self {
        count >= bitWidth ? ~0 : (1 << Self(count)) &- 1
    }
}
