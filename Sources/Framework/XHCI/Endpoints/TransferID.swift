// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer's id tells where it belongs, so that its completion finds the way back without a
/// search.
extension Transfer.ID {
    /// - Parameters:
    ///   - sequence: counts the transfers, so that no two have the same id.
    ///   - stream: the place of a stream in its table.
    init(sequence: UInt64, slot: Int, endpoint: Int, stream: Int) {
        self.init(
            rawValue: sequence << 24 | UInt64(stream & 0xff) << 16 | UInt64(slot & 0xff) << 8
                | UInt64(endpoint & 0xff))
    }

    var slot: Int { Int(rawValue >> 8 & 0xff) }
    var endpoint: Int { Int(rawValue & 0xff) }
    var stream: Int { Int(rawValue >> 16 & 0xff) }
}
