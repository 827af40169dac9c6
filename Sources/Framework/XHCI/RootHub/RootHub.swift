// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// What devices say, in their order, until the engine listens.
final class DeviceInbox {
    enum Message {
        case completed(Transfer.Completion)
        /// The device took itself away; its port has still to be freed.
        case disconnected(PortConnection)
        /// The device is gone: what it was asked for ends now.
        case unplugged(PortConnection)
        case woke(PortConnection)
    }

    private var messages: Deque<Message> = []

    var isEmpty: Bool { messages.isEmpty }

    func append(_ message: Message) { messages.append(message) }

    func next() -> Message? { messages.popFirst() }

    /// Whether the device has answered a transfer that the engine has not heard of.
    func holdsCompletion(of id: Transfer.ID) -> Bool {
        messages.contains { message in
            if case .completed(let completion) = message { return completion.id == id }
            return false
        }
    }
}

/// A device in a port of the root hub. It becomes inert when the device is unplugged.
final class PortConnection: USBPort {
    /// Counts from 0.
    let port: Int
    /// `nil` once the device is unplugged.
    private(set) var device: (any USBDevice)?
    /// Dropped with the device: a message about it in the inbox must not keep both alive.
    private var inbox: DeviceInbox?
    /// Transfers that were given up while the device had them. Until it gives them back, it may still
    /// write into their memory.
    private var abandoned: [Transfer.ID] = []
    /// The transfer in whose memory an unplugged device is still at work.
    private(set) var lastTransfer: Transfer.ID?
    /// Those of all these that commands have waited for long enough.
    private var overdue: Set<Transfer.ID> = []

    init(port: Int, device: any USBDevice, inbox: DeviceInbox) {
        self.port = port
        self.device = device
        self.inbox = inbox
    }

    /// Whether the device is there.
    var isOpen: Bool { device != nil }

    func submit(_ transfer: consuming Transfer) { device?.submit(transfer) }

    func complete(_ completion: Transfer.Completion) {
        guard let inbox else { return }
        if device == nil {
            guard completion.id == lastTransfer else { return }
            lastTransfer = nil
            self.inbox = nil
        }
        if !abandoned.isEmpty, let place = abandoned.firstIndex(of: completion.id) {
            abandoned.remove(at: place)
        }
        // To look for an id in a set costs its hash, empty or not.
        if !overdue.isEmpty { overdue.remove(completion.id) }
        // Of an abandoned transfer too: a command may wait for it.
        inbox.append(.completed(completion))
    }

    /// Nobody waits for this transfer any more but for its memory.
    ///
    /// - Parameter isCancelled: the device was asked to end it before.
    func abandon(_ id: Transfer.ID, isCancelled: Bool) {
        guard let device, inbox?.holdsCompletion(of: id) == false else { return }
        abandoned.append(id)
        if !isCancelled { device.cancel(id) }
    }

    /// Whether the device has given back all that was given up.
    var isQuiet: Bool { abandoned.isEmpty && lastTransfer == nil }

    /// Whether a command has to wait for the device.
    var holdsUpCommands: Bool {
        abandoned.contains { !overdue.contains($0) }
            || lastTransfer.map { !overdue.contains($0) } ?? false
    }

    /// Lets commands wait no longer for what the device does not give back; resets still do.
    func endPatience() {
        overdue.formUnion(abandoned)
        if let lastTransfer { overdue.insert(lastTransfer) }
    }

    func disconnect() {
        if device != nil { inbox?.append(.disconnected(self)) }
    }

    func wake() {
        if device != nil { inbox?.append(.woke(self)) }
    }

    /// The device is unplugged. What it says from now on is not heard, but for the end of a transfer
    /// whose memory it cannot let go of at once.
    func close() {
        guard let device else { return }
        self.device = nil
        abandoned = []
        overdue = []
        device.detached()
        lastTransfer = device.transferInUse
        if lastTransfer == nil { inbox = nil }
    }
}

/// Which device is plugged in where.
///
/// Like the register file it is reached at any moment, so it does not touch the engine: that hears
/// of an unplugged device through the inbox.
final class RootHub {
    private let registers: RegisterFile
    private let inbox: DeviceInbox
    private var connections: [PortConnection?]
    /// Unplugged devices that were still at work in memory.
    private var departing: [PortConnection] = []

    init(registers: RegisterFile, inbox: DeviceInbox) {
        self.registers = registers
        self.inbox = inbox
        connections = Array(repeating: nil, count: registers.capabilities.ports)
    }

    /// A device may hold its port, which holds it.
    deinit {
        for connection in connections { connection?.close() }
    }

    /// What is plugged into a port; ports count from 0.
    func connection(at port: Int) -> PortConnection? {
        connections.indices.contains(port) ? connections[port] : nil
    }

    func port(of device: any USBDevice) -> Int? {
        connections.firstIndex { $0?.device === device }
    }

    func attach(_ device: any USBDevice) throws(AttachError) {
        guard !connections.contains(where: { $0?.device === device }) else {
            throw .alreadyAttached
        }
        let isSuperSpeed = device.speed.isSuperSpeed
        guard
            let port = connections.indices.first(where: {
                connections[$0] == nil && registers.ports[$0].isSuperSpeed == isSuperSpeed
            })
        else { throw .noFreePort(device.speed) }
        let connection = PortConnection(port: port, device: device, inbox: inbox)
        connections[port] = connection
        registers.ports[port].connect(device.speed)
        registers.markPortWork()
        device.attach(to: connection)
    }

    func detach(_ device: any USBDevice) {
        if let connection = connections.compactMap(\.self).first(where: { $0.device === device }) {
            unplug(connection)
        }
    }

    func unplug(_ connection: PortConnection) {
        guard connection.isOpen else { return }
        connections[connection.port] = nil
        registers.ports[connection.port].disconnect()
        registers.markPortWork()
        connection.close()
        departing.removeAll(where: \.isQuiet)
        if !connection.isQuiet { departing.append(connection) }
        inbox.append(.unplugged(connection))
    }

    /// Whether no device has memory of a transfer that was given up.
    var isQuiet: Bool {
        connections.allSatisfy { $0?.isQuiet ?? true } && departing.allSatisfy(\.isQuiet)
    }

    /// Resets every device, as a reset of the controller does to its ports.
    func resetDevices() {
        for connection in connections { connection?.device?.reset() }
    }

    /// Does to a device what the guest did to its port.
    func applyEffects(port: Int) {
        let effects = registers.ports[port].deviceActions
        guard !effects.isEmpty else { return }
        registers.ports[port].deviceActions = []
        let device = connections[port]?.device
        if effects.contains(.reset) {
            device?.reset()
            registers.ports[port].finishReset()
        }
        if effects.contains(.suspend) { device?.setSuspended(true) }
        if effects.contains(.resume) { device?.setSuspended(false) }
    }

    func wake(_ connection: PortConnection) {
        guard connection.device != nil else { return }
        if registers.ports[connection.port].wake() { registers.markPortWork() }
    }
}
