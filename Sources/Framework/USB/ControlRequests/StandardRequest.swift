// SPDX-License-Identifier: Apache-2.0

/// `bRequest` of a standard request (USB 2.0, table 9-4; USB 3.2, table 9-5).
///
/// A guest may send any byte, so values that are not among the constants are valid.
public struct StandardRequest: RawRepresentable, Hashable, Sendable {
    /// The byte in the Setup packet.
    public let rawValue: UInt8

    /// The request with this code, which need not be one of the constants.
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// GET_STATUS.
    public static let getStatus = StandardRequest(rawValue: 0)
    /// CLEAR_FEATURE; `wValue` is a ``FeatureSelector``.
    public static let clearFeature = StandardRequest(rawValue: 1)
    /// SET_FEATURE; `wValue` is a ``FeatureSelector``.
    public static let setFeature = StandardRequest(rawValue: 3)
    /// SET_ADDRESS.
    public static let setAddress = StandardRequest(rawValue: 5)
    /// GET_DESCRIPTOR; see ``SetupPacket/requestedDescriptor``.
    public static let getDescriptor = StandardRequest(rawValue: 6)
    /// SET_DESCRIPTOR.
    public static let setDescriptor = StandardRequest(rawValue: 7)
    /// GET_CONFIGURATION.
    public static let getConfiguration = StandardRequest(rawValue: 8)
    /// SET_CONFIGURATION.
    public static let setConfiguration = StandardRequest(rawValue: 9)
    /// GET_INTERFACE: which alternate setting an interface has.
    public static let getInterface = StandardRequest(rawValue: 10)
    /// SET_INTERFACE: selects an alternate setting.
    public static let setInterface = StandardRequest(rawValue: 11)
    /// SYNCH_FRAME.
    public static let synchFrame = StandardRequest(rawValue: 12)
    /// SET_SEL: the exit latencies of the link between host and device.
    public static let setSystemExitLatency = StandardRequest(rawValue: 48)
    /// SET_ISOCH_DELAY: the time that a packet needs from host to device.
    public static let setIsochronousDelay = StandardRequest(rawValue: 49)
}

/// `wValue` of CLEAR_FEATURE and SET_FEATURE (USB 2.0, table 9-6; USB 3.2, table 9-7).
///
/// The same value has different meanings for different recipients.
public struct FeatureSelector: RawRepresentable, Hashable, Sendable {
    /// The value in the Setup packet.
    public let rawValue: UInt16

    /// The feature with this selector, which need not be one of the constants.
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    /// ENDPOINT_HALT, of an endpoint.
    public static let endpointHalt = FeatureSelector(rawValue: 0)
    /// FUNCTION_SUSPEND, of an interface at SuperSpeed.
    public static let functionSuspend = FeatureSelector(rawValue: 0)
    /// DEVICE_REMOTE_WAKEUP, of a device below SuperSpeed.
    public static let deviceRemoteWakeup = FeatureSelector(rawValue: 1)
    /// TEST_MODE, of a device at high speed.
    public static let testMode = FeatureSelector(rawValue: 2)
    /// U1_ENABLE, of a device at SuperSpeed.
    public static let u1Enable = FeatureSelector(rawValue: 48)
    /// U2_ENABLE, of a device at SuperSpeed.
    public static let u2Enable = FeatureSelector(rawValue: 49)
    /// LTM_ENABLE (latency tolerance messages), of a device at SuperSpeed.
    public static let latencyToleranceEnable = FeatureSelector(rawValue: 50)
}

extension SetupPacket {
    /// The standard request in `bRequest`; `nil` for requests of a class or a vendor.
    public var standardRequest: StandardRequest? {
        kind == .standard ? StandardRequest(rawValue: request) : nil
    }

    /// The feature in `wValue` of CLEAR_FEATURE and SET_FEATURE; `nil` for other requests.
    public var feature: FeatureSelector? {
        switch standardRequest {
        case .clearFeature, .setFeature: FeatureSelector(rawValue: value)
        default: nil
        }
    }

    /// The type and index of the descriptor that GET_DESCRIPTOR asks the device for; `nil` for
    /// other requests and recipients (USB 2.0, 9.4.3).
    public var requestedDescriptor: (type: DescriptorType, index: UInt8)? {
        guard standardRequest == .getDescriptor, direction == .in, recipient == .device else {
            return nil
        }
        return (
            DescriptorType(rawValue: UInt8(value >> 8)), UInt8(truncatingIfNeeded: value)
        )
    }
}
