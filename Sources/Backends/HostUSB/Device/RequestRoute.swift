// SPDX-License-Identifier: Apache-2.0

package import USB

/// How a control request of the guest is executed.
///
/// Some standard requests (USB 2.0, 9.4) change state that the host's kernel keeps of the device as
/// well: its configuration, its claimed interfaces, the data toggles of its endpoints. Forwarded,
/// they would leave kernel and device in disagreement, so they become calls of the kernel. Other
/// requests concern the link between the device and the host's port, which is not the guest's.
package enum RequestRoute: Equatable {
    /// The request goes to the device unchanged.
    case forward
    /// The host's kernel executes the request.
    case operate(DeviceOperation)
    /// The request concerns the virtual link only and completes with success.
    case acknowledge
    /// The request is malformed, or not allowed to the guest, and is stalled.
    case refuse

    package init(_ setup: SetupPacket) {
        guard setup.kind == .standard else {
            self = .forward
            return
        }
        switch StandardRequest(rawValue: setup.request) {
        case .setAddress:
            // The host's kernel has given the device its address; the guest's is the controller's.
            self = setup.isPlain(.device) ? .acknowledge : .refuse
        case .setConfiguration:
            guard setup.isPlain(.device), let value = UInt8(exactly: setup.value) else {
                self = .refuse
                return
            }
            self = .operate(.setConfiguration(value))
        case .setInterface:
            guard setup.isPlain(.interface), let number = UInt8(exactly: setup.index),
                let setting = UInt8(exactly: setup.value)
            else {
                self = .refuse
                return
            }
            self = .operate(.setInterface(number, setting: setting))
        case .clearFeature where setup.recipient == .endpoint:
            let endpoint = EndpointAddress(rawValue: UInt8(truncatingIfNeeded: setup.index))
            // The default control endpoint has no halt and no toggle between transfers.
            guard setup.value == Feature.endpointHalt, endpoint.number != 0 else {
                self = .forward
                return
            }
            self = setup.isPlain(.endpoint) ? .operate(.clearHalt(endpoint)) : .refuse
        case .setFeature where setup.recipient == .device && setup.value == Feature.testMode:
            // The port would need a power cycle afterwards.
            self = .refuse
        case .setFeature where setup.isLinkPower, .clearFeature where setup.isLinkPower:
            self = .acknowledge
        case .setSystemExitLatency, .setIsochronousDelay:
            // They describe the path from the controller to the device, which is the host's.
            self = setup.direction == .out ? .acknowledge : .refuse
        default:
            self = .forward
        }
    }
}

/// `bRequest` of standard requests (USB 3.2, table 9-5); open, because the guest writes it.
private struct StandardRequest: RawRepresentable, Equatable {
    let rawValue: UInt8
    init(rawValue: UInt8) { self.rawValue = rawValue }
    static let clearFeature = StandardRequest(rawValue: 1)
    static let setFeature = StandardRequest(rawValue: 3)
    static let setAddress = StandardRequest(rawValue: 5)
    static let getDescriptor = StandardRequest(rawValue: 6)
    static let setConfiguration = StandardRequest(rawValue: 9)
    static let setInterface = StandardRequest(rawValue: 11)
    static let setSystemExitLatency = StandardRequest(rawValue: 48)
    static let setIsochronousDelay = StandardRequest(rawValue: 49)
}

/// Feature selectors (USB 3.2, table 9-7).
private enum Feature {
    static let endpointHalt: UInt16 = 0
    static let testMode: UInt16 = 2
    /// U1_ENABLE, U2_ENABLE and LTM_ENABLE, which are device features.
    static let linkPower: ClosedRange<UInt16> = 48...50
}

extension SetupPacket {
    /// Whether the packet goes OUT to `recipient` and has no data stage.
    fileprivate func isPlain(_ wanted: Recipient) -> Bool {
        direction == .out && recipient == wanted && length == 0
    }

    fileprivate var isLinkPower: Bool {
        isPlain(.device) && Feature.linkPower.contains(value)
    }

    /// Whether the request is a standard one that does not change the device.
    var onlyReads: Bool { kind == .standard && direction == .in }

    /// Whether the request reads the descriptors of a configuration.
    var getsConfiguration: Bool {
        guard onlyReads, recipient == .device,
            StandardRequest(rawValue: request) == .getDescriptor
        else { return false }
        switch DescriptorType(rawValue: UInt8(value >> 8)) {
        case .configuration, .otherSpeedConfiguration: return true
        default: return false
        }
    }
}
