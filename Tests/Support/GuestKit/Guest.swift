// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB
public import XHCI

/// A guest: a simulated machine and a driver that has started the controller.
public struct Guest {
    public let machine: SimulatedMachine
    public let driver: GuestDriver

    /// - Parameters:
    ///   - kind: how the controller accesses guest memory.
    ///   - capabilities: the controller's capabilities.
    ///   - options: the driver's configuration of the controller.
    ///   - memory: the guest's memory; new memory if `nil`.
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

    /// Attaches a device and brings it to the Addressed state. Its port events are taken.
    public func plug(_ device: any USBDevice) throws -> GuestSlot {
        try machine.attach(device)
        return try driver.addressNewDevice()
    }

    /// Attaches a device and configures one endpoint.
    public func plug(
        _ device: any USBDevice, _ endpoint: GuestEndpointConfiguration
    ) throws -> GuestEndpoint {
        try plug(device).configureOne(endpoint)
    }

    /// USBSTS.
    public var status: UInt32 { machine.read32(registers.status) }

    /// Whether HSE or HCE is set, which only a reset clears.
    public var hasFailed: Bool {
        status & (GuestDriver.Status.hostSystemError | GuestDriver.Status.controllerError) != 0
    }

    /// Whether the controller executes commands.
    public var answersCommands: Bool {
        (try? driver.command(.command(.noOpCommand)))?.code == .success
    }

    /// An address without guest memory.
    public var nowhere: GuestAddress { memory.base + memory.size + 0x1000_0000 }
}
