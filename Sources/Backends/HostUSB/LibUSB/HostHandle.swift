// SPDX-License-Identifier: Apache-2.0

package import USB

/// The calls that a passed-through device makes on the opened device of the host.
///
/// There are two conformers: ``LibUSBHandle`` and the scripted one of the tests, which decides
/// itself when a transfer or an operation ends. Everything happens on the event loop.
protocol HostHandle: AnyObject {
    /// Who is told of what ends; set before the first transfer.
    var observer: (any HostHandleObserver)? { get set }

    /// Hands a transfer to the kernel, which works off each endpoint's in order. Isochronous ones
    /// are started together with those that follow in the same turn of the loop.
    func submit(_ transfer: Transfer) -> HostSubmission

    /// Asks for an early end; a transfer that has ended already is no error.
    func cancel(_ id: Transfer.ID)

    /// Takes back what has ended by now, cancelled transfers above all: after this the kernel writes
    /// nothing more into their memory. Their ends are told as always, before this returns.
    func reap()

    /// Makes a call that may block, after all earlier ones.
    func perform(
        _ operation: DeviceOperation, then completion: @escaping (DeviceOperation.Outcome) -> Void)
}

/// What becomes of a transfer that is handed to the kernel.
enum HostSubmission: Equatable {
    /// ``HostHandleObserver/transferEnded(_:with:)`` follows.
    case started
    /// The kernel has no memory for it now (usbfs_memory_mb).
    case noMemory
    /// The kernel does not do this: no such endpoint, or its interface is not ours.
    case refused
    /// The device is gone.
    case disconnected
}

/// The side of a ``HostHandle`` that is called back.
protocol HostHandleObserver: AnyObject {
    /// A started transfer ended.
    func transferEnded(_ transfer: Transfer, with completion: Transfer.Completion)

    /// The device has left the host.
    func deviceLeft()

    /// Something that the operator should know.
    func noted(_ problem: String)
}

/// A change of a device that the host's kernel must make itself, by a call that may block.
package enum DeviceOperation: Equatable, Sendable {
    /// 0 leaves the device without a configuration.
    case setConfiguration(UInt8)
    /// The interface's number and its alternate setting.
    case setInterface(UInt8, setting: UInt8)
    case clearHalt(EndpointAddress)
    case reset
    /// Streams 1 to `count` of a bulk endpoint (USB 3.2, 8.12.1.4).
    case allocateStreams(EndpointAddress, count: Int)
    case freeStreams(EndpointAddress)

    /// How an operation ended, with what the operator should know of it.
    struct Outcome: Equatable, Sendable {
        enum Result: Sendable {
            case done
            /// The device or the kernel said no.
            case refused
            /// The device is gone, or came back as another one.
            case disconnected
        }

        var result: Result
        var warnings: [String] = []
        /// What only whoever looks closely wants to know.
        var notes: [String] = []
    }
}
