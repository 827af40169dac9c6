// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Platform
public import USB

/// `dice:sides=N`: a USB device that throws a die once a second and tells what came up.
public final class DiceBackend: DeviceBackend {
    public static let scheme = "dice"
    public static let summary = "a die that is thrown once a second"
    public static let example = "dice:sides=20"
    public static let parameters = [
        Parameter("sides", value: "N", summary: "2 to 255; default 6")
    ]

    private let dice: Dice
    private weak var bus: (any USBBus)?

    public init(
        _ specification: DeviceSpecification, context: BackendContext
    ) throws(BackendError) {
        let sides: UInt8 = try specification.number("sides", in: 2...255) ?? 6
        dice = Dice(sides: sides, loop: context.loop)
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        do throws(AttachError) {
            try bus.attach(dice)
            self.bus = bus
        } catch {
            throw BackendError("cannot plug in the dice: \(error)")
        }
    }

    public func stop() { bus?.detach(dice) }
}

/// The device: an interrupt endpoint for the throws, and a vendor's request for the number of sides.
final class Dice: USBDevice {
    static let endpoint = EndpointAddress(1, .in)

    let speed = USBSpeed.high
    let summary: String
    private let sides: UInt8
    private let loop: any EventLoop
    private weak var port: (any USBPort)?
    private var controlPipe: DefaultControlPipe
    /// Transfers that wait for the next throw, in the order in which they came.
    private var waiting: [Transfer] = []
    private var nextThrow: Watch?

    init(sides: UInt8, loop: any EventLoop) {
        self.sides = sides
        self.loop = loop
        summary = "dice with \(sides) sides"
        controlPipe = DefaultControlPipe(
            DeviceDescription(
                speed: speed,
                device: DeviceDescriptor(
                    usbVersion: 0x0200, maxPacketSize: 64, vendor: 0x1209, product: 0x0001),
                configurations: [
                    ConfigurationDescriptor(interfaces: [
                        InterfaceDescriptor(
                            interfaceClass: .vendorSpecific,
                            endpoints: [
                                EndpointDescriptor(
                                    Self.endpoint, .interrupt, maxPacketSize: 1, interval: 4)
                            ])
                    ])
                ],
                strings: ["usbvfiod", "Dice", "0001"]))
    }

    func attach(to port: any USBPort) {
        self.port = port
        reset()
        scheduleThrow()
    }

    func detached() {
        nextThrow = nil
        port = nil
        waiting = []
    }

    func reset() {
        controlPipe.reset()
        let transfers = waiting
        waiting = []
        for transfer in transfers { port?.complete(transfer.completion(.cancelled)) }
    }

    func submit(_ transfer: Transfer) {
        switch transfer.kind {
        case .control(let setup):
            switch controlPipe.handle(transfer, setup) {
            case .answered(let completion, _): port?.complete(completion)
            case .forDevice: port?.complete(answer(setup, transfer))
            }
        case .interrupt where controlPipe.isHalted(Self.endpoint):
            port?.complete(transfer.completion(.stalled))
        case .interrupt where transfer.endpoint == Self.endpoint && controlPipe.configuration != 0:
            waiting.append(transfer)
        default:
            port?.complete(transfer.completion(.failed))
        }
    }

    func cancel(_ id: Transfer.ID) {
        guard let index = waiting.firstIndex(where: { $0.id == id }) else { return }
        port?.complete(waiting.remove(at: index).completion(.cancelled))
    }

    /// Vendor's request 1 asks for the number of sides; there is no other.
    private func answer(_ setup: SetupPacket, _ transfer: Transfer) -> Transfer.Completion {
        guard setup.kind == .vendor, setup.request == 1, setup.direction == .in else {
            return transfer.completion(.stalled)
        }
        return transfer.completion(sending: [sides], for: setup)
    }

    private func scheduleThrow() {
        nextThrow = loop.schedule(at: loop.now + .seconds(1)) { [weak self] in
            self?.throwOnce()
            self?.scheduleThrow()
        }
    }

    /// A throw is told to the transfer that waits longest; one that nobody waits for is not seen.
    private func throwOnce() {
        guard !waiting.isEmpty else { return }
        let transfer = waiting.removeFirst()
        let count = transfer.buffer.copy(from: [UInt8.random(in: 1...sides)])
        port?.complete(transfer.completion(.completed, transferred: count))
    }
}
