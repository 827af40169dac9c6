// SPDX-License-Identifier: Apache-2.0

/// A device slot (xHCI 4.5.3): the guest's handle to a device, with its contexts and endpoints.
struct Slot {
    let number: Int
    /// `nil` if the slot is disabled.
    var state: SlotState?
    /// The address of the output Device Context; `nil` until Address Device has read it from the
    /// DCBAA.
    var contextAddress: UInt64?
    /// The content of the output Slot Context.
    var context = SlotContext()
    /// The device that was at the slot's root hub port when Address Device was executed.
    var connection: PortConnection?
    /// The enabled endpoints, by Device Context Index; empty if the slot is disabled.
    var endpoints: [Endpoint?]

    init(number: Int) {
        self.number = number
        endpoints = []
    }

    /// The properties of the slot that its endpoints use.
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

    /// Disables the slot (xHCI 4.6.4): its endpoints are dropped and their transfers are cancelled
    /// without events.
    mutating func disable(_ bus: SystemBus) {
        dropEndpoints(from: 1, bus)
        state = nil
        context.state = .enabled
        storeContext(bus)
        connection = nil
        endpoints = []
    }

    /// Drops the endpoints from a DCI on and cancels their transfers without events. Their output
    /// contexts stay as they are.
    mutating func dropEndpoints(from first: Int, _ bus: SystemBus) {
        let owner = identity
        for index in endpoints.indices where index >= first {
            endpoints[index]?.drop(owner, bus)
            endpoints[index] = nil
        }
    }

    /// Enters a state and stores the output Slot Context.
    mutating func setState(_ new: SlotState, _ bus: SystemBus) {
        state = new
        context.state = new
        storeContext(bus)
    }

    func storeContext(_ bus: SystemBus) {
        if let contextAddress { bus.store(context, at: contextAddress) }
    }

    /// The address of an endpoint's output context; `nil` before Address Device.
    func contextAddress(of endpoint: Int) -> UInt64? {
        contextAddress.map { $0 &+ UInt64(endpoint * SlotContext.size) }
    }
}
