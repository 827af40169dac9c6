// SPDX-License-Identifier: Apache-2.0

import USB

/// A port without a controller that records completions.
final class FakePort: USBPort {
    private(set) var completions: [Transfer.ID: Transfer.Completion] = [:]
    private(set) var order: [Transfer.ID] = []
    /// Transfers that were completed twice.
    private(set) var doubles: [Transfer.ID] = []

    func complete(_ completion: Transfer.Completion) {
        if completions.updateValue(completion, forKey: completion.id) != nil {
            doubles.append(completion.id)
        }
        order.append(completion.id)
    }

    func disconnect() {}
    func wake() {}
}
