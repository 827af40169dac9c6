// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// A device slot that is enabled (xHCI 4.5).
final class Slot {
    let id: Int
    /// The output Device Context; known from Address Device on.
    var contextAddress: GuestAddress?
    var context = SlotContext()
    /// The root hub port, counted from 0; known from Address Device on.
    var portIndex: Int?
    /// By DCI; the places 0 and beyond 31 stay empty.
    var endpoints: [Endpoint?] = Array(repeating: nil, count: 32)

    init(id: Int) { self.id = id }

    var state: SlotState { context.state }

    func endpointContextAddress(_ dci: Int) -> GuestAddress? {
        contextAddress.map { $0 + dci * contextSize }
    }
}
