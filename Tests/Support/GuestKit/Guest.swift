// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB
public import XHCI

/// A whole guest in one value: a simulated machine whose driver has started the controller.
public struct Guest {
    public let machine: SimulatedMachine
    public let driver: GuestDriver

    /// - Parameters:
    ///   - kind: how the controller reaches the guest's memory.
    ///   - capabilities: what the controller offers.
    ///   - options: how the driver sets it up.
    ///   - memory: the guest's memory; a fresh one unless given.
    public init(
        _ kind: SimulatedMachine.MemoryKind = .local, capabilities: Capabilities = .init(),
        options: GuestDriver.Options = .init(), memory: GuestRAM? = nil
    ) throws {
        machine = try SimulatedMachine(kind, capabilities: capabilities, memory: memory)
        driver = GuestDriver(machine, options)
        try driver.start()
    }

    public var memory: GuestRAM { machine.memory }
    public var registers: GuestRegisters { driver.registers }

    /// Plugs a device in and brings it to the Addressed state; its port's events are taken.
    public func plug(_ device: any USBDevice) throws -> GuestSlot {
        try machine.attach(device)
        return try driver.addressNewDevice()
    }

    /// Plugs a device in and configures one endpoint.
    public func plug(
        _ device: any USBDevice, _ endpoint: GuestEndpointConfiguration
    ) throws -> GuestEndpoint {
        try plug(device).configureOne(endpoint)
    }

    /// USBSTS.
    public var status: UInt32 { machine.read32(registers.status) }

    /// Whether the controller has told of an error that only a reset ends: HSE or HCE.
    public var hasFailed: Bool {
        status & (GuestDriver.Status.hostSystemError | GuestDriver.Status.controllerError) != 0
    }

    /// Whether commands are carried out.
    public var answersCommands: Bool {
        (try? driver.command(.command(.noOpCommand)))?.code == .success
    }

    /// An address that the guest has no memory at.
    public var nowhere: GuestAddress { memory.base + memory.size + 0x1000_0000 }
}
