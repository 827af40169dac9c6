// SPDX-License-Identifier: Apache-2.0

package import USB

/// A change to a device that goes through the host's kernel, by a system call that may block.
package enum DeviceOperation: Equatable, Sendable {
    /// Sets a configuration; 0 leaves the device unconfigured.
    case setConfiguration(UInt8)
    /// Selects an alternate setting of an interface.
    case setInterface(UInt8, setting: UInt8)
    case clearHalt(EndpointAddress)
    /// Resets the port of the host that the device is connected to.
    case reset
    /// Allocates streams 1 to `count` of a bulk endpoint (USB 3.2, 8.12.1.4).
    case allocateStreams(EndpointAddress, count: Int)
    case freeStreams(EndpointAddress)

    /// The result of an operation, with messages for the log.
    struct Outcome: Equatable, Sendable {
        enum Result: Sendable {
            case done
            /// The device or the kernel refused the operation.
            case refused
            /// The device is disconnected, or became another device in a reset.
            case disconnected
        }

        var result: Result
        var warnings: [String] = []
        /// Messages for the debug log.
        var details: [String] = []
    }
}
