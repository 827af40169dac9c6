// SPDX-License-Identifier: Apache-2.0

/// A device slot (xHCI 4.5.3): a device as the guest has addressed it, with its endpoints.
struct Slot {
    let number: Int
    /// `nil` while the slot is disabled.
    var state: SlotState?
    /// The output Device Context, once Address Device has found it.
    var contextAddress: UInt64?
    /// What the output Slot Context holds.
    var context = SlotContext()
    /// The device in the root hub port that the slot was addressed at.
    var connection: PortConnection?
    /// By Device Context Index.
    var endpoints: [Endpoint?]

    init(number: Int) {
        self.number = number
        endpoints = []
    }

    var identity: SlotIdentity {
        SlotIdentity(slot: number, connection: connection, interrupter: context.interrupter)
    }

    mutating func enable() {
        state = .enabled
        contextAddress = nil
        context = SlotContext()
        connection = nil
        endpoints = Array(repeating: nil, count: 32)
    }

    /// The slot is free again; its transfers are given up.
    mutating func disable(_ bus: SystemBus) {
        dropEndpoints(from: 1)
        state = nil
        context.state = .enabled
        storeContext(bus)
        connection = nil
        endpoints = []
    }

    /// Drops the endpoints from an index on.
    mutating func dropEndpoints(from first: Int) {
        let owner = identity
        for index in endpoints.indices where index >= first {
            endpoints[index]?.abandon(owner)
            endpoints[index] = nil
        }
    }

    /// Enters a state and shows it in the output context.
    mutating func enter(_ new: SlotState, _ bus: SystemBus) {
        state = new
        context.state = new
        storeContext(bus)
    }

    func storeContext(_ bus: SystemBus) {
        if let contextAddress { bus.store(context, at: contextAddress) }
    }

    /// Where the output context of an endpoint stands.
    func contextAddress(of endpoint: Int) -> UInt64? {
        contextAddress.map { $0 &+ UInt64(endpoint * SlotContext.size) }
    }
}
