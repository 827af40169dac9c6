// SPDX-License-Identifier: Apache-2.0

package import USB

/// The route of a guest's control request: to the device, to the host's kernel, or neither.
///
/// Some standard requests (USB 2.0, 9.4) change state of which the host's kernel has a copy: the
/// configuration, the claimed interfaces, the data toggles of the endpoints. These requests become
/// system calls, so that kernel and device agree. Other requests concern the link between the
/// device and the host's port, which the guest does not control.
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
        switch setup.standardRequest {
        case .setAddress:
            // The address on the host's bus belongs to the host's kernel.
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
            // The default control endpoint has no halt, and its toggle restarts in each transfer.
            guard setup.feature == .endpointHalt, endpoint.number != 0 else {
                self = .forward
                return
            }
            self = setup.isPlain(.endpoint) ? .operate(.clearHalt(endpoint)) : .refuse
        case .setFeature where setup.recipient == .device && setup.feature == .testMode:
            // Only a power cycle of the port would end the test.
            self = .refuse
        case .setFeature where setup.isLinkPower, .clearFeature where setup.isLinkPower:
            self = .acknowledge
        case .setSystemExitLatency, .setIsochronousDelay:
            // The delays are those of the path to the device, which belongs to the host.
            self = setup.direction == .out ? .acknowledge : .refuse
        default:
            self = .forward
        }
    }
}

extension SetupPacket {
    /// Whether the request goes OUT to `wanted` and has no data stage.
    fileprivate func isPlain(_ wanted: Recipient) -> Bool {
        direction == .out && recipient == wanted && length == 0
    }

    fileprivate var isLinkPower: Bool {
        guard isPlain(.device), let feature else { return false }
        return [.u1Enable, .u2Enable, .latencyToleranceEnable].contains(feature)
    }

    /// Whether the request is a standard one that does not change the device.
    var onlyReads: Bool { standardRequest != nil && direction == .in }

    /// Whether the request reads the descriptors of a configuration.
    var getsConfiguration: Bool {
        switch requestedDescriptor?.type {
        case .configuration, .otherSpeedConfiguration: true
        default: false
        }
    }
}
