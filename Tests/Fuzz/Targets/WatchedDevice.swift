// SPDX-License-Identifier: Apache-2.0

import USB

/// A device as it is, with somebody who listens to what the controller says to it: no transfer twice,
/// none when it is unplugged, not more than it may have at a time.
final class WatchedDevice: USBDevice, USBPort {
    /// The controller's own bounds, with what one transfer may exceed them by.
    private static let mostTransfers = 256
    private static let longestTransfer = 64 << 20

    private let inner: any USBDevice
    private var port: (any USBPort)?
    private var submitted: Set<Transfer.ID> = []
    private var waiting: [Transfer.ID: EndpointAddress] = [:]
    private(set) var violation: String?

    init(_ inner: any USBDevice) { self.inner = inner }

    private func expect(_ holds: Bool, _ what: @autoclosure () -> String) {
        if !holds, violation == nil { violation = what() }
    }

    var speed: USBSpeed { inner.speed }
    var summary: String { inner.summary }
    var keepsIsochronousTime: Bool { inner.keepsIsochronousTime }

    func attach(to port: any USBPort) {
        self.port = port
        inner.attach(to: self)
    }

    func detached() {
        expect(port != nil, "unplugged twice")
        port = nil
        waiting = [:]
        inner.detached()
    }

    func submit(_ transfer: Transfer) {
        expect(port != nil, "a transfer for a device that is not plugged in")
        expect(submitted.insert(transfer.id).inserted, "\(transfer.id) is submitted twice")
        expect(
            transfer.buffer.count <= Self.longestTransfer, "\(transfer.buffer.count) bytes at once")
        if case .control(let setup) = transfer.kind {
            expect(transfer.endpoint == .control, "a control transfer at \(transfer.endpoint)")
            expect(
                transfer.buffer.count <= setup.length,
                "\(transfer.buffer.count) bytes of data, \(setup.length) announced")
        }
        waiting[transfer.id] = transfer.endpoint
        expect(
            waiting.values.count { $0 == transfer.endpoint } <= Self.mostTransfers,
            "too many transfers at \(transfer.endpoint)")
        inner.submit(transfer)
    }

    func cancel(_ id: Transfer.ID) {
        expect(submitted.contains(id), "\(id) is cancelled and was never submitted")
        inner.cancel(id)
    }

    func reset() { inner.reset() }

    func resetEndpoint(_ endpoint: EndpointAddress) { inner.resetEndpoint(endpoint) }

    func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        expect((0...256).contains(count), "\(count) streams")
        inner.setStreams(count, for: endpoint)
    }

    func setSuspended(_ suspended: Bool) { inner.setSuspended(suspended) }

    func complete(_ completion: Transfer.Completion) {
        waiting[completion.id] = nil
        port?.complete(completion)
    }

    func disconnect() { port?.disconnect() }

    func wake() { port?.wake() }
}
