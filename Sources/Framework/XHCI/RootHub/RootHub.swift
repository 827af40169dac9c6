// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The root hub: the ports and the devices attached to them (xHCI 4.19).
///
/// Its methods may be called at any moment, like those of the register file, so they do not call
/// the engine. The inbox notifies the engine of a detached device.
final class RootHub {
    private let registers: RegisterFile
    private let inbox: DeviceInbox
    private var connections: [PortConnection?]

    init(registers: RegisterFile, inbox: DeviceInbox) {
        self.registers = registers
        self.inbox = inbox
        connections = Array(repeating: nil, count: registers.capabilities.ports)
    }

    /// Detaches all devices: a device may retain its connection, which retains the device.
    deinit {
        for connection in connections { connection?.detach() }
    }

    /// The device attached to a port, by its index.
    func connection(at port: Int) -> PortConnection? {
        connections.indices.contains(port) ? connections[port] : nil
    }

    /// The index of the port that a device is attached to.
    func port(of device: any USBDevice) -> Int? {
        connections.firstIndex { $0?.device === device }
    }

    func attach(_ device: any USBDevice) throws(AttachError) {
        guard !connections.contains(where: { $0?.device === device }) else {
            throw .alreadyAttached
        }
        let isSuperSpeed = device.speed.isSuperSpeed
        let ports = connections.indices.filter { registers.ports[$0].isSuperSpeed == isSuperSpeed }
        guard let port = ports.first(where: { connections[$0] == nil }) else {
            throw .noFreePort(device.speed, count: ports.count)
        }
        let connection = PortConnection(port: port, device: device, inbox: inbox)
        connections[port] = connection
        registers.ports[port].connect(device.speed)
        registers.markPortWork()
        device.attach(to: connection)
    }

    func detach(_ device: any USBDevice) {
        if let connection = connections.compactMap(\.self).first(where: { $0.device === device }) {
            detach(connection)
        }
    }

    func detach(_ connection: PortConnection) {
        guard connection.isAttached else { return }
        connections[connection.port] = nil
        registers.ports[connection.port].disconnect()
        registers.markPortWork()
        connection.detach()
        inbox.append(.detached(connection))
    }

    /// Resets every device, as HCRST does to the ports.
    func resetDevices() {
        for connection in connections { connection?.device?.reset() }
    }

    /// Applies port register writes of the guest to the device of a port.
    func applyDeviceActions(port: Int) {
        let actions = registers.ports[port].deviceActions
        guard !actions.isEmpty else { return }
        registers.ports[port].deviceActions = []
        let device = connections[port]?.device
        if actions.contains(.reset) {
            device?.reset()
            registers.ports[port].finishReset()
        }
        if actions.contains(.suspend) { device?.setSuspended(true) }
        if actions.contains(.resume) { device?.setSuspended(false) }
    }

    /// Resumes the port of a device that signals remote wakeup.
    func wake(_ connection: PortConnection) {
        guard connection.isAttached else { return }
        if registers.ports[connection.port].wake() { registers.markPortWork() }
    }
}
