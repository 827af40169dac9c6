// SPDX-License-Identifier: Apache-2.0

/// The device's half of the default control pipe: answers the standard requests of USB chapter 9
/// (USB 2.0, 9.4; USB 3.2, 9.4) for an emulated device.
///
/// It keeps what those requests change: the configuration, the alternate settings, the halted
/// endpoints, the features. Requests of a class or vendor, and standard ones that only the device
/// can know (such as the report descriptor of an interface), go back to the device. It holds no
/// port and completes nothing by itself:
///
///     case .control(let setup):
///         switch controlPipe.handle(transfer, setup) {
///         case .answered(let completion, let change): …
///         case .forDevice: …
///         }
///
/// The controller, not the device, assigns addresses; SET_ADDRESS is accepted and means nothing.
public struct DefaultControlPipe: Sendable {
    /// What a request changed, for devices that must act on it.
    public enum Change: Hashable, Sendable {
        /// SET_CONFIGURATION, also with the present value: everything starts afresh. 0: none.
        case configuration(UInt8)
        /// SET_INTERFACE, also with the present value.
        case alternateSetting(UInt8, interface: UInt8)
        /// CLEAR_FEATURE(ENDPOINT_HALT), also of an endpoint that was not halted.
        case haltCleared(EndpointAddress)
        /// SET_FEATURE(ENDPOINT_HALT).
        case haltSet(EndpointAddress)
    }

    /// What became of a control transfer.
    public enum Outcome: Sendable {
        /// A standard request: the completion is to be handed to the port.
        case answered(Transfer.Completion, Change?)
        /// The device must answer.
        case forDevice
    }

    /// The device as it describes itself.
    public let description: DeviceDescription

    /// The configuration that is set, 0 before and after.
    public private(set) var configuration: UInt8 = 0
    /// The host wants to be woken by this device.
    public private(set) var isRemoteWakeupEnabled = false

    /// By interface number; an interface that is not listed is at setting 0.
    private var alternateSettings: [UInt8: UInt8] = [:]
    /// A bit for each endpoint: 0...15 OUT, 16...31 IN.
    private var halted: UInt32 = 0
    /// Bits 2 and 3 of the device's status: U1 and U2 enabled.
    private var linkStates: UInt8 = 0
    /// Functions that may wake the host, a bit for each of the first 64 interfaces.
    private var wakingFunctions: UInt64 = 0

    /// The pipe of a device that was just plugged in.
    public init(_ description: DeviceDescription) { self.description = description }

    /// A bus reset: as just plugged in.
    public mutating func reset() { self = Self(description) }

    // MARK: - For the device

    /// The setting of an interface of the present configuration.
    public func alternateSetting(ofInterface number: UInt8) -> UInt8 {
        alternateSettings[number] ?? 0
    }

    /// Whether an endpoint answers STALL until the host clears it.
    public func isHalted(_ endpoint: EndpointAddress) -> Bool {
        halted & Self.bit(endpoint) != 0
    }

    /// Halts an endpoint.
    public mutating func halt(_ endpoint: EndpointAddress) { halted |= Self.bit(endpoint) }

    /// Answers a control transfer if its request is a standard one.
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
        case data([UInt8])
        case accepted(Change?)
        case refused
        case forDevice
    }

    private mutating func answer(_ setup: SetupPacket) -> Answer {
        guard setup.kind == .standard else { return .forDevice }
        // Each request has one direction; the wrong one is another, unknown request.
        switch (StandardRequest(rawValue: setup.request), setup.direction) {
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
        case (.setSystemExitLatency, .out):
            let isRight = description.speed.isSuperSpeed && setup.recipient == .device
            return isRight && setup.length == 6 ? .accepted(nil) : .refused
        case (.setIsochronousDelay, .out):
            let isRight = description.speed.isSuperSpeed && setup.recipient == .device
            return isRight && setup.length == 0 ? .accepted(nil) : .refused
        case (.setDescriptor, _), (.synchFrame, _): return .refused
        default:
            // Classes have put their own requests among the standard ones of an interface.
            return setup.recipient == .interface ? .forDevice : .refused
        }
    }

    private func getDescriptor(_ setup: SetupPacket) -> Answer {
        guard setup.recipient == .device else {
            return setup.recipient == .interface ? .forDevice : .refused
        }
        let type = DescriptorType(rawValue: UInt8(setup.value >> 8))
        let index = UInt8(truncatingIfNeeded: setup.value)
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
        linkStates = 0
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

    private func getStatus(_ setup: SetupPacket) -> Answer {
        // A value other than 0 asks for the status of a kind that is not ours (PTM).
        guard setup.value == 0 else { return .refused }
        switch setup.recipient {
        case .device:
            var status = linkStates
            if currentConfiguration?.isSelfPowered ?? false { status |= 1 }
            if isRemoteWakeupEnabled { status |= 2 }
            return .data([status, 0])
        case .interface:
            let number = UInt8(truncatingIfNeeded: setup.index)
            guard interfaces.contains(where: { $0.number == number }) else { return .refused }
            var status: UInt8 = 0
            if description.speed.isSuperSpeed, supportsRemoteWakeup { status |= 1 }
            if wakingFunctions & Self.bit(number) != 0 { status |= 2 }
            return .data([status, 0])
        case .endpoint:
            guard let endpoint = endpoint(setup.index) else { return .refused }
            return .data([isHalted(endpoint) ? 1 : 0, 0])
        default:
            return .refused
        }
    }

    private mutating func changeFeature(_ setup: SetupPacket, set: Bool) -> Answer {
        guard setup.length == 0 else { return .refused }
        switch setup.recipient {
        case .device: return changeDeviceFeature(setup.value, set: set)
        case .interface: return changeFunctionSuspend(setup, set: set)
        case .endpoint:
            guard setup.value == Feature.endpointHalt, let endpoint = endpoint(setup.index)
            else { return .refused }
            // The control pipe recovers by itself with the next SETUP.
            guard endpoint.number != 0 else { return .accepted(nil) }
            if set { halted |= Self.bit(endpoint) } else { halted &= ~Self.bit(endpoint) }
            return .accepted(set ? .haltSet(endpoint) : .haltCleared(endpoint))
        default: return .refused
        }
    }

    private mutating func changeDeviceFeature(_ feature: UInt16, set: Bool) -> Answer {
        switch feature {
        case Feature.deviceRemoteWakeup:
            // SuperSpeed devices are woken for by their functions.
            guard !description.speed.isSuperSpeed, supportsRemoteWakeup else { return .refused }
            isRemoteWakeupEnabled = set
        case Feature.u1Enable, Feature.u2Enable:
            guard description.speed.isSuperSpeed, configuration != 0 else { return .refused }
            let bit: UInt8 = feature == Feature.u1Enable ? 1 << 2 : 1 << 3
            if set { linkStates |= bit } else { linkStates &= ~bit }
        default:
            // Test modes concern signals on wires, which an emulated device has none of.
            return .refused
        }
        return .accepted(nil)
    }

    /// FUNCTION_SUSPEND: the low byte of the index is the interface, the high byte says what is
    /// wanted (USB 3.2, table 9-9).
    private mutating func changeFunctionSuspend(_ setup: SetupPacket, set: Bool) -> Answer {
        let number = UInt8(truncatingIfNeeded: setup.index)
        guard description.speed.isSuperSpeed, setup.value == Feature.functionSuspend,
            interfaces.contains(where: { $0.number == number })
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

    /// Of the present configuration, all settings; empty while none is set.
    private var interfaces: [InterfaceDescriptor] { currentConfiguration?.interfaces ?? [] }

    /// The endpoint that an index names, if the present configuration and settings have it.
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

/// `bRequest` of the standard requests (USB 2.0, table 9-4; USB 3.2, table 9-5); open.
private struct StandardRequest: RawRepresentable, Equatable {
    let rawValue: UInt8
    static let getStatus = StandardRequest(rawValue: 0)
    static let clearFeature = StandardRequest(rawValue: 1)
    static let setFeature = StandardRequest(rawValue: 3)
    static let setAddress = StandardRequest(rawValue: 5)
    static let getDescriptor = StandardRequest(rawValue: 6)
    static let setDescriptor = StandardRequest(rawValue: 7)
    static let getConfiguration = StandardRequest(rawValue: 8)
    static let setConfiguration = StandardRequest(rawValue: 9)
    static let getInterface = StandardRequest(rawValue: 10)
    static let setInterface = StandardRequest(rawValue: 11)
    static let synchFrame = StandardRequest(rawValue: 12)
    /// SET_SEL.
    static let setSystemExitLatency = StandardRequest(rawValue: 48)
    static let setIsochronousDelay = StandardRequest(rawValue: 49)
}

/// Feature selectors (USB 2.0, table 9-6; USB 3.2, table 9-7). They are told apart by recipient.
private enum Feature {
    static let endpointHalt: UInt16 = 0
    static let functionSuspend: UInt16 = 0
    static let deviceRemoteWakeup: UInt16 = 1
    static let u1Enable: UInt16 = 48
    static let u2Enable: UInt16 = 49
}

extension Transfer {
    /// The answer to a control transfer that asks for data: as many of `bytes` as the host wants.
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
