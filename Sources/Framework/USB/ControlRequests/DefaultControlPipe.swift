// SPDX-License-Identifier: Apache-2.0

/// The device side of the default control pipe: answers standard requests for an emulated device
/// (USB 2.0, 9.4; USB 3.2, 9.4).
///
/// It holds the state that those requests change: configuration, alternate settings, halted
/// endpoints and features. Requests of a class or a vendor are left to the device, and so are
/// standard requests to an interface that depend on its class, such as GET_DESCRIPTOR of a report
/// descriptor. It has no port: the device completes the transfer.
///
///     case .control(let setup):
///         switch controlPipe.handle(transfer, setup) {
///         case .answered(let completion, let change): …
///         case .forDevice: …
///         }
///
/// SET_ADDRESS is accepted and has no effect, because the controller assigns addresses.
///
/// A device uses it on the event loop.
public struct DefaultControlPipe: Sendable {
    /// A change of state by a request, for devices that must act on it.
    public enum Change: Hashable, Sendable {
        /// SET_CONFIGURATION selected a configuration, which may be the current one, or 0 for none.
        /// All settings, halts and features are back at their defaults.
        case configuration(UInt8)
        /// SET_INTERFACE selected an alternate setting, which may be the current one.
        case alternateSetting(UInt8, interface: UInt8)
        /// CLEAR_FEATURE(ENDPOINT_HALT). The endpoint may not have been halted.
        case haltCleared(EndpointAddress)
        /// SET_FEATURE(ENDPOINT_HALT). The endpoint may have been halted before.
        case haltSet(EndpointAddress)
    }

    /// The result of ``handle(_:_:)``.
    public enum Outcome: Sendable {
        /// A standard request: the device passes the completion to ``USBPort/complete(_:)`` and
        /// acts on the change, if there is one.
        case answered(Transfer.Completion, Change?)
        /// The device must answer the request itself.
        case forDevice
    }

    /// The device's descriptors.
    public let description: DeviceDescription

    /// The value of the selected configuration; 0 if none is.
    public private(set) var configuration: UInt8 = 0
    /// Whether the host allows this device to wake it (``USBPort/wake()``).
    public private(set) var isRemoteWakeupEnabled = false

    /// Alternate settings by interface number, without those that are 0.
    private var alternateSettings: [UInt8: UInt8] = [:]
    /// A bit for each endpoint: 0 to 15 OUT, 16 to 31 IN.
    private var halted: UInt32 = 0
    /// U1 and U2, as GET_STATUS returns them.
    private var linkStates: DeviceStatus = []
    /// A bit for each of the first 64 interfaces: whether its function may wake the host.
    private var wakingFunctions: UInt64 = 0

    /// The control pipe of a device in its default state.
    public init(_ description: DeviceDescription) { self.description = description }

    /// Returns to the default state, as after a bus reset.
    public mutating func reset() { self = Self(description) }

    // MARK: - For the device

    /// The alternate setting of an interface in the selected configuration.
    public func alternateSetting(ofInterface number: UInt8) -> UInt8 {
        alternateSettings[number] ?? 0
    }

    /// Whether an endpoint is halted: it answers STALL until the host clears the halt.
    public func isHalted(_ endpoint: EndpointAddress) -> Bool {
        halted & Self.bit(endpoint) != 0
    }

    /// Halts an endpoint, after the device has completed a transfer as stalled.
    public mutating func halt(_ endpoint: EndpointAddress) { halted |= Self.bit(endpoint) }

    /// Answers a control transfer if its request is a standard one.
    ///
    /// Data of an IN request is copied to the transfer's buffer. A request that the device does not
    /// support, or that does not fit its state, is answered by STALL.
    public mutating func handle(_ transfer: Transfer, _ setup: SetupPacket) -> Outcome {
        switch answer(setup) {
        case .data(let bytes): .answered(transfer.completion(sending: bytes, for: setup), nil)
        case .accepted(let change):
            .answered(
                transfer.completion(.completed, transferred: transfer.outgoingCount), change)
        case .refused: .answered(transfer.completion(.stalled), nil)
        case .forDevice: .forDevice
        }
    }

    // MARK: - Requests

    private enum Answer {
        /// The data stage of an IN request.
        case data([UInt8])
        /// A zero-length status stage.
        case accepted(Change?)
        /// STALL.
        case refused
        case forDevice
    }

    private mutating func answer(_ setup: SetupPacket) -> Answer {
        guard let request = setup.standardRequest else { return .forDevice }
        // Each request has one direction; with the other one it is an unknown request.
        switch (request, setup.direction) {
        case (.getDescriptor, .in): return getDescriptor(setup)
        case (.getConfiguration, .in):
            guard setup.recipient == .device else { return .refused }
            return .data([configuration])
        case (.setConfiguration, .out): return setConfiguration(setup)
        case (.getInterface, .in): return getInterface(setup)
        case (.setInterface, .out): return setInterface(setup)
        case (.getStatus, .in): return getStatus(setup)
        case (.clearFeature, .out): return changeFeature(setup, set: false)
        case (.setFeature, .out): return changeFeature(setup, set: true)
        case (.setAddress, .out):
            return setup.recipient == .device ? .accepted(nil) : .refused
        case (.setSystemExitLatency, .out): return acceptLinkTiming(setup, length: 6)
        case (.setIsochronousDelay, .out): return acceptLinkTiming(setup, length: 0)
        case (.setDescriptor, _), (.synchFrame, _): return .refused
        default:
            // Some classes define further standard requests to an interface.
            return setup.recipient == .interface ? .forDevice : .refused
        }
    }

    private func getDescriptor(_ setup: SetupPacket) -> Answer {
        guard let (type, index) = setup.requestedDescriptor else {
            return setup.recipient == .interface ? .forDevice : .refused
        }
        guard let bytes = description.descriptor(type, index: index) else { return .refused }
        return .data(bytes)
    }

    private mutating func setConfiguration(_ setup: SetupPacket) -> Answer {
        guard setup.recipient == .device, setup.length == 0,
            let value = UInt8(exactly: setup.value),
            value == 0 || description.configurations.contains(where: { $0.value == value })
        else { return .refused }
        configuration = value
        alternateSettings = [:]
        halted = 0
        wakingFunctions = 0
        linkStates = []
        return .accepted(.configuration(value))
    }

    private func getInterface(_ setup: SetupPacket) -> Answer {
        guard setup.recipient == .interface, let number = UInt8(exactly: setup.index),
            interfaces.contains(where: { $0.number == number })
        else { return .refused }
        return .data([alternateSetting(ofInterface: number)])
    }

    private mutating func setInterface(_ setup: SetupPacket) -> Answer {
        guard setup.recipient == .interface, setup.length == 0,
            let number = UInt8(exactly: setup.index), let setting = UInt8(exactly: setup.value),
            let interface = interfaces.first(where: {
                $0.number == number && $0.alternateSetting == setting
            })
        else { return .refused }
        alternateSettings[number] = setting
        for endpoint in interface.endpoints { halted &= ~Self.bit(endpoint.address) }
        return .accepted(.alternateSetting(setting, interface: number))
    }

    /// Accepts SET_SEL and SET_ISOCH_DELAY at SuperSpeed, where an emulated device has no use for
    /// them.
    private func acceptLinkTiming(_ setup: SetupPacket, length: UInt16) -> Answer {
        guard description.speed.isSuperSpeed, setup.recipient == .device, setup.length == length
        else { return .refused }
        return .accepted(nil)
    }

    // MARK: - Status and features

    private func getStatus(_ setup: SetupPacket) -> Answer {
        // The value selects the kind of status (USB 3.2, table 9-7); only 0, the standard one, is
        // supported.
        guard setup.value == 0 else { return .refused }
        switch setup.recipient {
        case .device:
            var status = linkStates
            if currentConfiguration?.isSelfPowered ?? false { status.insert(.selfPowered) }
            if isRemoteWakeupEnabled { status.insert(.remoteWakeup) }
            return .data([status.rawValue, 0])
        case .interface:
            let number = UInt8(truncatingIfNeeded: setup.index)
            guard interfaces.contains(where: { $0.number == number }) else { return .refused }
            var status: InterfaceStatus = []
            if description.speed.isSuperSpeed, supportsRemoteWakeup {
                status.insert(.remoteWakeCapable)
            }
            if wakingFunctions & Self.bit(number) != 0 { status.insert(.remoteWakeup) }
            return .data([status.rawValue, 0])
        case .endpoint:
            guard let endpoint = endpoint(setup.index) else { return .refused }
            return .data([isHalted(endpoint) ? 1 : 0, 0])
        default:
            return .refused
        }
    }

    private mutating func changeFeature(_ setup: SetupPacket, set: Bool) -> Answer {
        guard let feature = setup.feature, setup.length == 0 else { return .refused }
        switch setup.recipient {
        case .device: return changeDeviceFeature(feature, set: set)
        case .interface:
            guard feature == .functionSuspend else { return .refused }
            return changeFunctionSuspend(setup, set: set)
        case .endpoint:
            guard feature == .endpointHalt, let endpoint = endpoint(setup.index)
            else { return .refused }
            // The next SETUP ends a halt of the control endpoint.
            guard endpoint.number != 0 else { return .accepted(nil) }
            if set { halted |= Self.bit(endpoint) } else { halted &= ~Self.bit(endpoint) }
            return .accepted(set ? .haltSet(endpoint) : .haltCleared(endpoint))
        default: return .refused
        }
    }

    private mutating func changeDeviceFeature(_ feature: FeatureSelector, set: Bool) -> Answer {
        switch feature {
        case .deviceRemoteWakeup:
            // At SuperSpeed each function is allowed to wake, by FUNCTION_SUSPEND.
            guard !description.speed.isSuperSpeed, supportsRemoteWakeup else { return .refused }
            isRemoteWakeupEnabled = set
        case .u1Enable, .u2Enable:
            guard description.speed.isSuperSpeed, configuration != 0 else { return .refused }
            let state: DeviceStatus = feature == .u1Enable ? .u1Enabled : .u2Enabled
            if set { linkStates.insert(state) } else { linkStates.remove(state) }
        default:
            // Test modes concern electrical signals, which an emulated device does not have.
            return .refused
        }
        return .accepted(nil)
    }

    /// FUNCTION_SUSPEND: the low byte of the index is the interface, bit 1 of the high byte enables
    /// remote wake-up (USB 3.2, table 9-9).
    private mutating func changeFunctionSuspend(_ setup: SetupPacket, set: Bool) -> Answer {
        let number = UInt8(truncatingIfNeeded: setup.index)
        guard description.speed.isSuperSpeed, interfaces.contains(where: { $0.number == number })
        else { return .refused }
        let wakes = set && setup.index >> 8 & 2 != 0
        guard !wakes || supportsRemoteWakeup else { return .refused }
        if wakes {
            wakingFunctions |= Self.bit(number)
        } else {
            wakingFunctions &= ~Self.bit(number)
        }
        isRemoteWakeupEnabled = wakingFunctions != 0
        return .accepted(nil)
    }

    // MARK: - Lookup

    private var currentConfiguration: ConfigurationDescriptor? {
        description.configurations.first { $0.value == configuration }
    }

    private var supportsRemoteWakeup: Bool {
        (currentConfiguration ?? description.configurations.first)?.supportsRemoteWakeup ?? false
    }

    /// All settings of all interfaces in the selected configuration; empty if none is selected.
    private var interfaces: [InterfaceDescriptor] { currentConfiguration?.interfaces ?? [] }

    /// The endpoint in `wIndex`, if the selected configuration and alternate settings have it.
    private func endpoint(_ index: UInt16) -> EndpointAddress? {
        guard let raw = UInt8(exactly: index), raw & 0x70 == 0 else { return nil }
        let address = EndpointAddress(rawValue: raw)
        if address.number == 0 { return address }
        let exists = interfaces.contains { interface in
            interface.alternateSetting == alternateSetting(ofInterface: interface.number)
                && interface.endpoints.contains { $0.address == address }
        }
        return exists ? address : nil
    }

    private static func bit(_ endpoint: EndpointAddress) -> UInt32 {
        1 << (UInt32(endpoint.number) + (endpoint.direction == .in ? 16 : 0))
    }

    private static func bit(_ interface: UInt8) -> UInt64 {
        interface < 64 ? 1 << UInt64(interface) : 0
    }
}

/// The first byte of a device's status (USB 2.0, figure 9-4; USB 3.2, figure 9-4).
private struct DeviceStatus: OptionSet {
    let rawValue: UInt8
    static let selfPowered = DeviceStatus(rawValue: 1 << 0)
    static let remoteWakeup = DeviceStatus(rawValue: 1 << 1)
    static let u1Enabled = DeviceStatus(rawValue: 1 << 2)
    static let u2Enabled = DeviceStatus(rawValue: 1 << 3)
}

/// The first byte of an interface's status at SuperSpeed (USB 3.2, figure 9-5).
private struct InterfaceStatus: OptionSet {
    let rawValue: UInt8
    /// Function Remote Wake Capable.
    static let remoteWakeCapable = InterfaceStatus(rawValue: 1 << 0)
    /// Function Remote Wakeup enabled.
    static let remoteWakeup = InterfaceStatus(rawValue: 1 << 1)
}

extension Transfer {
    /// The completion of a control transfer IN, with as many of `bytes` as `wLength` allows.
    ///
    /// Copies them to the transfer's buffer.
    public func completion(sending bytes: [UInt8], for setup: SetupPacket) -> Completion {
        let wanted = min(bytes.count, Int(setup.length))
        let moved =
            wanted == bytes.count
            ? buffer.copy(from: bytes) : buffer.copy(from: Array(bytes.prefix(wanted)))
        return completion(.completed, transferred: moved)
    }

    /// The bytes that an accepted control transfer took from the host.
    fileprivate var outgoingCount: Int { direction == .out ? buffer.count : 0 }
}
