// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer's id contains its slot, endpoint and queue, so that a completion needs no search.
extension Transfer.ID {
    /// - Parameters:
    ///   - sequence: the number of the transfer, so that no two have the same id.
    ///   - queue: the index of its queue in ``Endpoint/queues``.
    init(sequence: UInt64, slot: Int, endpoint: Int, queue: Int) {
        self.init(
            rawValue: sequence << 24 | UInt64(queue & 0xff) << 16 | UInt64(slot & 0xff) << 8
                | UInt64(endpoint & 0xff))
    }

    var slot: Int { Int(rawValue >> 8 & 0xff) }
    var endpoint: Int { Int(rawValue & 0xff) }
    var queue: Int { Int(rawValue >> 16 & 0xff) }
}
