// SPDX-License-Identifier: Apache-2.0

import USB

/// A wrapper of a USB device that checks the controller's calls and keeps the first violation.
///
/// Each transfer is submitted once, to an attached device, within the limits on number and size.
final class WatchedDevice: USBDevice, USBPort {
    /// The controller's limits, plus the margin by which one transfer may exceed them.
    private static let maximumTransfers = 256
    private static let maximumLength = 64 << 20

    private let inner: any USBDevice
    private var port: (any USBPort)?
    private var submitted: Set<Transfer.ID> = []
    private var inFlight: [Transfer.ID: EndpointAddress] = [:]
    private(set) var violation: String?

    init(_ inner: any USBDevice) { self.inner = inner }

    private func expect(_ condition: Bool, _ message: @autoclosure () -> String) {
        if !condition, violation == nil { violation = message() }
    }

    var speed: USBSpeed { inner.speed }
    var summary: String { inner.summary }
    var keepsIsochronousTime: Bool { inner.keepsIsochronousTime }

    func attach(to port: any USBPort) {
        self.port = port
        inner.attach(to: self)
    }

    func detached() {
        expect(port != nil, "the device is detached twice")
        port = nil
        inFlight = [:]
        inner.detached()
    }

    func submit(_ transfer: Transfer) {
        expect(port != nil, "a transfer is submitted to a detached device")
        expect(submitted.insert(transfer.id).inserted, "\(transfer.id) is submitted twice")
        expect(
            transfer.buffer.count <= Self.maximumLength,
            "a transfer of \(transfer.buffer.count) bytes")
        if case .control(let setup) = transfer.kind {
            expect(transfer.endpoint == .control, "a control transfer to \(transfer.endpoint)")
            expect(
                transfer.buffer.count <= setup.length,
                "a Data Stage of \(transfer.buffer.count) bytes with wLength \(setup.length)")
        }
        inFlight[transfer.id] = transfer.endpoint
        expect(
            inFlight.values.count { $0 == transfer.endpoint } <= Self.maximumTransfers,
            "too many transfers in flight on \(transfer.endpoint)")
        inner.submit(transfer)
    }

    func cancel(_ id: Transfer.ID) {
        expect(submitted.contains(id), "\(id) is cancelled and has not been submitted")
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
        inFlight[completion.id] = nil
        port?.complete(completion)
    }

    func disconnect() { port?.disconnect() }

    func wake() { port?.wake() }
}
